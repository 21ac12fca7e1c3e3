"""From a finalized model to a program of Core ML: torch.export, coremltools, a check."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
from coremltools.converters.mil.frontend.torch import ops
from coremltools.converters.mil.mil.passes import pass_pipeline
from torch import nn
from torch.export import ExportedProgram

from coreml_backend.activations import integers_for_quantized
from coreml_backend.concatenations import part_before_joining
from coreml_backend.describing import renamed, types
from coreml_backend.dialect import check_operations, dialect
from coreml_backend.lowering import Lowered, recording
from coreml_backend.pipelines import unhurried
from coreml_backend.precision import compute_precision
from coreml_backend.refusals import generation
from coreml_backend_hooks import CoreMLOptions
from export_rewrites import Interface, module_of, rewritten, summary, tidy_outputs
from export_rewrites import trace as exported
from palette_core.errors import BackendError
from palette_core.plugins import ExportFunction
from palette_core.storage import palette_sites

_INDICES = ("indices", "nonzero_indices")
_PARAMETRIZED = re.compile(r"(?:^|(?<=\.))parametrizations\.(?P<state>.+)\.\d+$")
_LARGEST = 1 << 30  # torch writes sizes without a maximum as infinite, or nearly so


def converted(
    model: nn.Module,
    function: ExportFunction,
    program: ExportedProgram,
    face: Interface,
    options: CoreMLOptions,
) -> tuple[Any, dict[str, list[str]]]:
    """Convert one function of a finalized model; the model is left as it was.

    Args:
        model: the weights are called by its names.
        function: what is converted, in evaluation mode.
        program: from `trace`.
        face: the names that it gets.
        options: deployment target and precision.

    Returns:
        The `coremltools.models.MLModel`, not saved, and the names of weights by its operations.

    Raises:
        BackendError: torch or coremltools cannot take the model; the message names the operation
            where there is one.
    """
    inside = function.module or model
    names, folds = _names(model, inside, program), options.channel_scales == "folded"
    with recording(names, folds=folds) as lowered:
        package = convert(program, face, options, lowered.wide)
    package = renamed(package, face)
    return package, _stored_names(package, lowered)


def trace(
    model: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """Return the model as a program that coremltools takes.

    Raises:
        BackendError: no inputs, torch.export fails, or a dynamic dimension has no maximum.
    """
    program = exported(model, example_inputs, dynamic_shapes, backend="coreml", stack_traces=False)
    integers_for_quantized(program)
    program = rewritten(program, dialect())
    part_before_joining(program)
    tidy_outputs(program)
    _check_dynamic(program)
    return program


def convert(
    program: ExportedProgram,
    face: Interface,
    options: CoreMLOptions,
    wide: Collection[str] = (),
    *,
    check: bool = False,
) -> Any:
    """Return the converted `coremltools.models.MLModel`, not yet saved.

    Args:
        program: from `trace`.
        face: its interface; options may call inputs by its names.
        options: deployment target and precision.
        wide: names of weights that are found, during the conversion, not to fit float16.
        check: stop after the first of coremltools' steps, in which operations are refused, and
            return nothing of use.

    Raises:
        BackendError: naming the operations that coremltools does not know, or that failed, and
            the modules that hold them.
    """
    check_operations(program)
    how: dict[str, Any] = {"compute_precision": compute_precision(options, wide)}
    if check:
        how = {"pass_pipeline": ct.PassPipeline.EMPTY, "convert_to": "milinternal"}
    with _error_lines() as lines, bars(options), unhurried():
        try:
            return ct.convert(
                program,
                minimum_deployment_target=generation(options),
                skip_model_load=True,
                **types(program, face, options),
                **how,
            )
        except BackendError:
            raise
        except Exception as error:
            where = "; ".join(line.strip() for line in lines if line.strip())
            layer = re.search(r'Layer "(\w+)"', str(error))
            raise BackendError(
                f"coremltools {ct.__version__} cannot convert {_blamed(program, where, layer)}"
                f"{': ' * bool(where)}{where}: {summary(error)}"
            ) from error


@contextlib.contextmanager
def bars(options: CoreMLOptions) -> Iterator[None]:
    """Let coremltools draw no progress bars, unless they are asked for."""
    places = () if options.show_progress else ((ops, "_tqdm"), (pass_pipeline, "tqdm"))
    drawn = [(module, name, getattr(module, name)) for module, name in places]
    try:
        for module, name, _ in drawn:
            setattr(module, name, lambda items, **_: items)
        yield
    finally:
        for module, name, draws in drawn:
            setattr(module, name, draws)


# --- inside -------------------------------------------------------------------------------------


def _blamed(program: ExportedProgram, where: str, layer: re.Match[str] | None) -> str:
    """Return operation and module of the node that coremltools names in its log or its error."""
    found = re.search(r"located at: '([^']*)'", where) or layer
    for node in program.graph.nodes:
        if found is not None and node.name == found[1]:
            return f"{node.target} ({module_of(node)})"
    return "the model"


def _check_dynamic(program: ExportedProgram) -> None:
    """Refuse inputs without a largest size. torch makes up symbols that no input has, too."""
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in inputs:
            continue
        for axis, size in enumerate(getattr(node.meta["val"], "shape", ())):
            bounds = (
                None if isinstance(size, int) else program.range_constraints.get(size.node.expr)
            )
            if bounds is not None and bounds.upper > _LARGEST:
                raise BackendError(
                    f"axis {axis} of input {node.name!r} has no maximum, which Core ML needs; "
                    "write torch.export.Dim('name', min=1, max=512) or the like"
                )


@contextlib.contextmanager
def _error_lines() -> Iterator[list[str]]:
    """Collect what coremltools logs as errors: it names there the operation that failed."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Handler(logging.ERROR)
    logger = logging.getLogger("coremltools")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _names(model: nn.Module, inside: nn.Module, program: ExportedProgram) -> dict[str, str]:
    """Return the name of each palettized weight by the program's name of its indices."""
    first = {id(site.palette): site.name for site in palette_sites(model)}
    found = {}
    for inner, buffer in program.graph_signature.inputs_to_buffers.items():
        prefix, _, part = buffer.rpartition(".")
        if part in _INDICES:
            traced = _PARAMETRIZED.sub(r"\g<state>", prefix)  # in graphs no palettes are left
            found[inner] = first.get(id(inside.get_submodule(prefix)), traced)
    return found


def _stored_names(package: Any, lowered: Lowered) -> dict[str, list[str]]:
    """Return the torch names of weights by operation of the package.

    Raises:
        BackendError: a weight did not stay palettized.
    """
    stored = {}
    for function in package.get_spec().mlProgram.functions.values():
        for block in function.block_specializations.values():
            for op in block.operations:
                if op.type.startswith("constexpr_"):
                    name = op.attributes["name"].immediateValue.tensor.strings.values[0]
                    stored[name.removesuffix("_cast_fp16")] = name
    lost = sorted(set(lowered.names) - set(stored))
    if lost:
        raise BackendError(
            "coremltools made dense weights of "
            + ", ".join(lowered.names[name][0] for name in lost)
        )
    return {stored[name]: torch_names for name, torch_names in lowered.names.items()}


# --- files --------------------------------------------------------------------------------------


def check_place(path: Path) -> None:
    """Refuse to replace what is no package.

    Raises:
        BackendError: something else stands there.
    """
    if path.exists() and not (path.is_dir() and (path / "Manifest.json").is_file()):
        raise BackendError(f"{path} exists and is no Core ML package; remove it or write elsewhere")
