"""Lowering of a palettized weight in a Core AI program.

``palette_core::depalettize`` turns into the operations of `PalettizedTensor.decode`, in its order
and its dtypes (``palette_core::depalettize_sparse`` likewise, see `sparse`):

1. ``lut_to_dense`` on packed indices and the LUT, which stays in its 8-bit dtype if it has one;
2. for a quantized LUT, ``blockwise_shift_scale`` in float32, one scale per LUT;
3. a cast to the dtype of the weight, if that is a 16-bit one;
   an 8-bit index of a scalar says no more than the 8-bit entry that it picks, so there the entries
   stand in the place of the indices, and 1. falls away;
4. for scales per channel or per block of its inputs, ``blockwise_shift_scale`` in the dtype of
   the weight, which float16 factors are cast to.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx

from coreai_backend import ir, operators, sparse
from coreai_backend.scaling import dequantized, scaled
from palette_core.errors import BackendError
from palette_core.tensors import OP_NAME, SPARSE_OP_NAME, SPARSE_PARTS, StoredTensor, unpack

if TYPE_CHECKING:
    from coreai_torch import TorchConverter
    from torch.export import ExportedProgram

_DEFAULT = "_knows_palettes_by_default"
_PARAMETRIZED = re.compile(r"(?:^|(?<=\.))parametrizations\.(?P<state>.+)\.\d+\.\w+$")


class _Form(NamedTuple):
    """Operators that stand for indices in a program, their parts, and how they are looked up."""

    operator: str
    traced: str
    parts: tuple[str, ...]
    look_up: Callable[[str, StoredTensor], ir.Value]

    @property
    def names(self) -> tuple[str, str]:
        """The operators in full, with their overloads."""
        return f"{self.operator}.default", self.traced

    @property
    def targets(self) -> list[Any]:
        """The operators as programs hold them."""
        found = []
        for name in self.names:
            namespace, own, overload = re.split(r"::|\.", name)
            found.append(getattr(getattr(getattr(torch.ops, namespace), own), overload))
        return found


@dataclass(frozen=True)
class Taken:
    """Knowledge about a program that is to be converted.

    Attributes:
        program: the program.
        tensors: what `take_indices` has taken out of it.
        names: names of weights in the file, where they are others than in the function's module.
        prefix: of the program's names there, with a dot, where it is of a part of that.
    """

    program: ExportedProgram
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""


def register_lowerings(converter: TorchConverter, taken: Sequence[Taken] = ()) -> None:
    """Teach a converter palettized weights, before programs are added to it.

    Args:
        converter: a ``coreai_torch.TorchConverter``.
        taken: of the programs to be converted, where something is known.

    Raises:
        ValueError: it has been taught so, or has a lowering of its own for them.
    """
    _teach(converter, taken, default=False)


def _teach(converter: TorchConverter, taken: Sequence[Taken], *, default: bool) -> None:
    """Do so; lowerings by default give way to others."""
    latest: list[_Constants] = []

    def constants() -> _Constants:
        program = converter.exported_program
        if not latest or latest[0].program is not program:
            known = (each for each in taken if each.program is program)
            latest[:] = [_Constants(next(known, Taken(program)))]
        return latest[0]

    def lower(form: _Form, values: dict[str, Any], node: fx.Node, loc: Any) -> Any:
        del loc
        return _lower(form, values, node, constants())

    for form in _FORMS:
        made = partial(lower, form)
        setattr(made, _DEFAULT, default)
        for operator in form.names:
            known = converter._user_defined_torch_lowering.get(operator)
            override = getattr(known, _DEFAULT, False)
            converter.register_torch_lowering(operator, allow_override=override)(made)


def teach_converters() -> None:
    """Let every converter of this process know palettized weights, without being told."""
    with ir.quiet():
        from coreai_torch import TorchConverter
    made = TorchConverter.__init__
    if hasattr(made, _DEFAULT):
        return

    @functools.wraps(made)
    def make(self: TorchConverter, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        _teach(self, (), default=True)

    setattr(make, _DEFAULT, True)
    TorchConverter.__init__ = make


def take_indices(program: ExportedProgram) -> dict[str, Tensor]:
    """Take packed indices out of a program, leaving empty tensors, and return them by name.

    The converter copies every tensor of a program into constants of its own before it asks how
    to lower what uses them; these are large, and would be copied for nothing.
    """
    targets, held = program.graph_signature.inputs_to_buffers, program.state_dict
    nodes: list[fx.Node] = []
    used: set[fx.Node] = set()
    for form in _FORMS:
        find = partial(program.graph.find_nodes, op="call_function")
        found = [node for target in form.targets for node in find(target=target)]
        parts = (arg for node in found for arg in node.args[: len(form.parts)])
        used |= {arg for arg in parts if isinstance(arg, fx.Node)}
        nodes += found
    places = {
        _place(held[targets[node.name]])
        for node in used
        if targets.get(node.name) in held and set(node.users) <= set(nodes)
    }
    # Also under the names that the graph does not use: a weight is called by the first of them.
    taken = {name: tensor for name, tensor in held.items() if _place(tensor) in places}
    for name, tensor in taken.items():
        held[name] = tensor.new_empty(0)
    return taken


def _lower(form: _Form, values: dict[str, Any], node: fx.Node, constants: _Constants) -> Any:
    """Emit a weight, or hand out the one emitted for the same tensors before."""
    given = StoredTensor.from_arguments(node.args, node.kwargs, form.parts)
    # Weights that share their tensors share what is stored. The converter's map of values lives
    # as long as one graph, so nothing is carried over to another.
    key = f"{form.operator} {[constants.origin(argument) for argument in given.arguments()]}"
    if key not in values:
        read = [constants.read(argument) for argument in given.arguments()]
        weight = StoredTensor.from_arguments(read, parts=form.parts).typed()
        part = form.parts[0]
        name = constants.weight_name(given.parts[part], weight.parts[part], part)
        values[key] = scaled(form.look_up(name, weight), name, weight)
    return values[key]


def emit(name: str, weight: StoredTensor) -> ir.Value:
    """Emit a weight in the default form, where operations are being inserted."""
    return scaled(_look_up(name, weight), name, weight)


def _look_up(name: str, weight: StoredTensor) -> ir.Value:
    """Emit a weight without its channel scales."""
    picked = unpack(weight).picked_entries() if weight.n_bits == 8 else None
    if picked is not None:
        # As many bits as the indices, and no table.
        grid = weight.lut.shape[:-2]
        return dequantized(ir.constant(picked, f"{name}.{ir.PICKED}"), name, weight, grid)
    lut = weight.lut if weight.lut_scale is not None else weight.lut.to(weight.dtype)
    indices = ir.packed_constant(
        weight.parts["indices"], weight.index_shape, weight.n_bits, f"{name}.indices"
    )
    dense = ir.lut_to_dense(indices, ir.constant(lut, f"{name}.lut"), weight.axis)
    if weight.lut_scale is None:
        return dense
    return dequantized(dense, name, weight, lut.shape[:-2])


_FORMS = (
    _Form(OP_NAME, operators.DENSE, ("indices",), _look_up),
    _Form(SPARSE_OP_NAME, operators.SPARSE, SPARSE_PARTS, sparse.look_up),
)


class _Constants:
    """Reads tensors that an exported program holds."""

    def __init__(self, taken: Taken) -> None:
        self.program = program = taken.program
        signature = program.graph_signature
        self._names, self._prefix = taken.names, taken.prefix
        self._held = {**program.constants, **program.state_dict, **taken.tensors}
        self._first: dict[Any, str] = {}
        for name, tensor in self._held.items():
            if isinstance(tensor, Tensor):
                self._first.setdefault(_place(tensor), name)
        self._targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }

    def read(self, arg: Any) -> Any:
        """Return the tensor that a node stands for, whatever the inputs; others as they are.

        Raises:
            BackendError: it depends on the inputs.
        """
        if not isinstance(arg, fx.Node):
            return arg
        if arg.op == "placeholder" and arg.name in self._targets:
            return self._held[self._targets[arg.name]]
        if arg.op == "call_function" and callable(arg.target):
            args = fx.node.map_arg(arg.args, self.read)
            return arg.target(*args, **fx.node.map_arg(arg.kwargs, self.read))
        raise BackendError(
            f"backend 'coreai' needs palettized weights to be constants; {arg.name!r} depends on "
            "the inputs of the model"
        )

    def origin(self, arg: Any) -> Any:
        """Return what tells arguments apart: where tensors lie, and what was done to them."""
        if not isinstance(arg, fx.Node):
            return arg
        if arg.op == "placeholder" and arg.name in self._targets:
            return _place(self._held[self._targets[arg.name]])
        done = (*arg.args, *arg.kwargs.items())
        return str(arg.target), [self.origin(each) for each in done]

    def weight_name(self, node: Any, indices: Tensor, part: str) -> str:
        """Return the qualified name of the first weight that these indices stand for."""
        name = self._first.get(_place(indices), node.name)
        own = self._prefix + _PARAMETRIZED.sub(r"\g<state>", name).removesuffix(f".{part}")
        return self._names.get(own, own)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype
