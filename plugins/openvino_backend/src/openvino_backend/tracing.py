"""From a model to a program that OpenVINO's converter takes, and to what it makes of it."""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import openvino as ov
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from torch import fx, nn
from torch.export import ExportedProgram

from export_rewrites import left_over, module_of, rewritten, summary, trace
from openvino_backend.dialect import check_operations, dialect, lacking_in
from openvino_backend.masks import trust_causal_masks
from openvino_backend.programs import UNUSED, FlatProgram, flatten
from openvino_backend.untold import untold
from palette_core.errors import BackendError

_NODE = re.compile(r"([A-Za-z_]\w*)/aten\.")  # OpenVINO's names are a node's, and its operation's


class LackingOperationsError(BackendError):
    """The converter has nothing for some operations, and neither have rewrites.

    Attributes:
        operations: each with the modules that hold it, in words.
    """

    def __init__(self, operations: Sequence[str]) -> None:
        self.operations = tuple(operations)
        super().__init__(
            f"OpenVINO {_version()} has no conversion for {', '.join(operations)}; write the model "
            "without them"
        )


def converted(
    model: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None,
    dynamic_shapes: Any = None,
    kept: Sequence[str] = (),
) -> tuple[FlatProgram, ov.Model]:
    """Trace a model in evaluation mode and convert it, palettized weights and states as inputs.

    Operations that the converter finds no conversion for are rewritten, until it finds one for
    all of them. ``kept`` as in `flatten`.

    Returns:
        The program, and what the converter makes of it.

    Raises:
        LackingOperationsError: it has no conversion for some, and no rewrite reaches them.
        BackendError: no inputs, ``torch.export`` fails, or the converter does.
    """
    with quiet():
        program = trace(model, example_inputs, dynamic_shapes, backend="openvino")
        lacking: frozenset[str] = frozenset()
        while True:
            decomposed = rewritten(program, dialect(lacking))
            check_operations(decomposed)
            flat = flatten(model, decomposed, kept)
            trust_causal_masks(flat.graph.graph, decomposed.range_constraints)
            flat.graph.recompile()
            try:
                return flat, _converted(flat)
            except _NotConvertedError as error:
                if error.lacking <= lacking:
                    raise _told(decomposed, flat, error) from error.__cause__
                lacking |= error.lacking


@contextlib.contextmanager
def calling(model: nn.Module, function: str) -> Iterator[None]:
    """Let another method of a model stand for its ``forward``.

    Raises:
        BackendError: the model has no such method.
    """
    if function == "forward":
        yield
        return
    method = getattr(model, function, None)
    if not inspect.ismethod(method):
        known = inspect.getmembers(type(model), inspect.isfunction)
        methods = {n for n, _ in known if not n.startswith("_") and n not in vars(nn.Module)}
        raise BackendError(
            f"function={function!r} is no method of {type(model).__name__}, which has "
            f"{', '.join(sorted({'forward', *methods}))}"
        )
    own = vars(model).get("forward")
    model.forward = method
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch warns about in its own code on the way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
        warnings.filterwarnings("ignore", message="The tensor attributes? self")
        yield


class _NotConvertedError(Exception):
    """The converter does not take a program.

    Attributes:
        lacking: operations that it says to have nothing for.
    """

    def __init__(self, lacking: frozenset[str]) -> None:
        self.lacking = lacking


def _converted(program: FlatProgram) -> ov.Model:
    try:
        with untold():
            model = ov.convert_model(TorchFXPythonDecoder(program.graph))
    # The converter raises whatever its parts raise.
    except Exception as error:
        raise _NotConvertedError(lacking_in(str(error))) from error
    for parameter in model.get_parameters():
        if parameter.get_friendly_name() == UNUSED:
            model.remove_parameter(parameter)
    wanted = len(program.inputs) + len(program.weights) + len(program.states)
    if len(model.get_parameters()) != wanted:
        raise BackendError(
            f"OpenVINO made {len(model.get_parameters())} inputs of {wanted} inputs, palettized "
            "weights and states"
        )
    return model


def _told(program: ExportedProgram, flat: FlatProgram, error: _NotConvertedError) -> BackendError:
    def taken(node: fx.Node) -> bool:
        return str(node.target) not in error.lacking

    if error.lacking:
        return LackingOperationsError(sorted(left_over(program, taken)) or sorted(error.lacking))
    cause = error.__cause__
    assert isinstance(cause, Exception)
    return BackendError(
        f"OpenVINO {_version()} cannot convert {_failing(flat.graph.graph, str(cause))}: "
        f"{summary(cause)}"
    )


def _failing(graph: fx.Graph, message: str) -> str:
    """Return the first operation that a message names, with its module, in words."""
    nodes = {node.name: node for node in graph.nodes if node.op == "call_function"}
    for name in _NODE.findall(message):
        if name in nodes:
            return f"{nodes[name].target} ({module_of(nodes[name])})"
    return "the model"


def _version() -> str:
    return str(ov.get_version()).partition("-")[0]
