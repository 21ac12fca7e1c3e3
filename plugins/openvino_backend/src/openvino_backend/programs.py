"""A decomposed program, made flat: what the converter sees of it.

The converter folds whatever hangs on constants, look-ups included, so palettized weights come to
it as inputs, and `lowering` puts the look-ups in their place afterwards. It forgets writes to
buffers, so such a buffer becomes an input and an output, which `states` joins; it also joins
arguments of the model with outputs, where the model keeps them from call to call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils._pytree import tree_leaves, tree_unflatten

from export_rewrites import copied, module_of
from export_rewrites.naming import output_paths
from openvino_backend.states import State
from openvino_backend.weights import Weight, weights_of
from palette_core.errors import BackendError
from palette_core.tensors import dtype_name

UNUSED = "nothing"  # name of an input before all others


@dataclass(frozen=True)
class Input:
    """An input: its name in forward, the sizes of its axes, its dtype.

    Attributes:
        name: of forward's argument, with the place inside of it where that is nested.
        sizes: for each axis least and most; no most is None.
        dtype: as the model takes it.
    """

    name: str
    sizes: tuple[tuple[int, int | None], ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class FlatProgram:
    """A graph whose inputs are those of the model, its palettized weights, its states, in order.

    Outputs are those of the model, then the new values of states. Everything else is constant.
    """

    graph: fx.GraphModule
    inputs: list[Input] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def flatten(model: nn.Module, program: ExportedProgram, kept: Sequence[str] = ()) -> FlatProgram:
    """Make a decomposed program flat.

    Args:
        model: that the program was made of; it knows the names of palettized weights.
        program: left as it is.
        kept: arguments of the model's ``forward`` whose next values are its last outputs.

    Raises:
        BackendError: an output is no tensor, or a palettized weight no constant; or ``kept`` does
            not fit the model.
    """
    return _Flattening(model, program, kept).run()


class _Flattening:
    """The steps of `flatten`, which share the new graph and what stands for old nodes in it."""

    def __init__(self, model: nn.Module, program: ExportedProgram, kept: Sequence[str]) -> None:
        self._model, self._program = model, program
        self._old = program.graph_signature
        self._held = {**program.constants, **program.state_dict}
        self._root, self._graph = nn.Module(), fx.Graph()
        self._new: dict[fx.Node, fx.Node] = {}
        self._made = FlatProgram(fx.GraphModule(self._root, fx.Graph()))
        self._placeholders = {n.name: n for n in program.graph.find_nodes(op="placeholder")}
        self._kept = _inputs_of(model, program, kept) if kept else []

    def run(self) -> FlatProgram:
        made = self._made
        # The converter drops the first input where nothing uses it, and no other.
        self._graph.placeholder(UNUSED).meta["val"] = torch.zeros(())
        made.inputs.extend(self._inputs())
        weights = weights_of(self._model, self._program)
        for at, weight in enumerate(weights):
            self._placeholder(weight.nodes[0], f"palette_{at}")
            self._new |= dict.fromkeys(weight.nodes, self._new[weight.nodes[0]])
        made.weights.extend(weights)
        made.states.extend(self._states())
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._constant(node)
            elif node.op == "get_attr":
                self._keep(node, getattr(self._program.graph_module, str(node.target)))
            elif node.op != "output" and node not in self._new:
                self._new[node] = self._graph.node_copy(node, self._made_of)
                if node.target is torch.ops.aten.arange.start_step:
                    # The converter counts in integers unless it is told otherwise.
                    dtype = node.meta["val"].dtype
                    self._new[node].kwargs = {**self._new[node].kwargs, "dtype": dtype}
        made.outputs.extend(self._outputs())
        self._graph.eliminate_dead_code()
        return FlatProgram(
            fx.GraphModule(self._root, self._graph),
            made.inputs, made.weights, made.states, made.outputs,
        )  # fmt: skip

    def _made_of(self, node: fx.Node) -> fx.Node:
        """Return what stands for an old node; some inputs of checks are no tensors."""
        if node not in self._new:
            user = next(iter(node.users))
            name = next((arg for arg in user.args if not isinstance(arg, fx.Node)), user.target)
            raise BackendError(
                f"OpenVINO has no conversion for {name} ({module_of(user)}), which checks its "
                "result while it runs; write the model without it"
            )
        return self._new[node]

    def _placeholder(self, node: fx.Node, name: str) -> None:
        new = self._graph.placeholder(name)
        new.meta = dict(node.meta)
        self._new[node] = new

    def _inputs(self) -> Iterator[Input]:
        for spec in self._old.input_specs:
            if spec.kind is not InputKind.USER_INPUT or isinstance(spec.arg, ConstantArgument):
                continue
            if spec.arg.name not in self._kept:
                yield self._input(self._placeholders[spec.arg.name], "input")

    def _input(self, node: fx.Node, kind: str) -> Input:
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            raise BackendError(
                f"input {node.name!r} is a {type(value).__name__}, and OpenVINO takes tensors "
                "only; leave it out of dynamic_shapes, or give it as a tensor"
            )
        self._placeholder(node, f"{kind}_{len(self._new)}")
        return Input(node.name, tuple(self._range(size) for size in value.shape), value.dtype)

    def _range(self, size: Any) -> tuple[int, int | None]:
        if isinstance(size, int):
            return size, size
        found = self._program.range_constraints.get(size.node.expr)
        most = None if found is None or not found.upper.is_Integer else int(found.upper)
        least = 0 if found is None else int(found.lower)
        return least, most if most is None or most < 1 << 30 else None

    def _states(self) -> Iterator[State]:
        mutated = set(self._old.buffers_to_mutate.values())
        for name, buffer in self._old.inputs_to_buffers.items():
            if buffer in mutated:
                self._placeholder(self._placeholders[name], f"state_{len(self._new)}")
                first = self._held[buffer].detach()
                yield State(buffer, first, tuple(first.shape))
        for name in self._kept:
            given = self._input(self._placeholders[name], "state")
            first = torch.zeros([least for least, _ in given.sizes], dtype=given.dtype)
            sizes = (least if least == most else None for least, most in given.sizes)
            yield State(name, first, tuple(sizes))

    def _constant(self, node: fx.Node) -> None:
        targets = {
            **self._old.inputs_to_parameters,
            **self._old.inputs_to_buffers,
            **self._old.inputs_to_lifted_tensor_constants,
        }
        if node in self._new or not node.users or node.name not in targets:
            return
        self._keep(node, self._held[targets[node.name]].detach())

    def _keep(self, node: fx.Node, value: Any) -> None:
        name = f"held_{len(self._new)}"
        if isinstance(value, nn.Module):
            self._root.add_module(name, value)
        else:
            self._root.register_buffer(name, value)
        new = self._graph.get_attr(name)
        new.meta = dict(node.meta)
        self._new[node] = new

    def _outputs(self) -> list[str]:
        """Write the graph's output; returns names of the model's own."""
        kept, written, names = [], {}, iter(_output_names(self._program))
        found = []
        by_name = {node.name: node for node in self._program.graph.nodes}
        for spec in self._old.output_specs:
            if spec.kind is OutputKind.BUFFER_MUTATION:
                written[spec.target] = self._new[by_name[spec.arg.name]]
            elif spec.kind is OutputKind.USER_OUTPUT:
                name = next(names)
                if isinstance(spec.arg, ConstantArgument) and spec.arg.value is None:
                    continue
                node = by_name.get(getattr(spec.arg, "name", ""))
                if not isinstance(spec.arg, TensorArgument) or node is None:
                    raise BackendError(
                        f"output {name!r} of the model is {_shown(spec.arg)}, and OpenVINO gives "
                        "tensors only; leave it out of what forward returns"
                    )
                made = self._new[node]
                # The converter gives a result that is given out twice, once.
                kept.append(copied(self._graph, made) if made in kept else made)
                found.append(name)
        n_own = len(kept) - len(self._kept)
        if n_own < 1:
            raise BackendError(_too_few(len(kept), len(self._kept)))
        for state, new, name in zip(self._kept, kept[n_own:], found[n_own:], strict=True):
            _check_next(self._placeholders[state], new, name)
            written[state] = new
        self._graph.output((*kept[:n_own], *(written[state.name] for state in self._made.states)))
        return found[:n_own]


def _inputs_of(model: nn.Module, program: ExportedProgram, kept: Sequence[str]) -> list[str]:
    """Return names of the inputs that arguments of the model's ``forward`` are made of."""
    specs = program.graph_signature.input_specs
    names = [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
    args, kwargs = tree_unflatten(names, program.call_spec.in_spec)
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    unknown = [name for name in kept if name not in given]
    if unknown:
        raise BackendError(
            f"states names {', '.join(map(repr, unknown))}, and example_inputs give "
            f"{', '.join(map(repr, given))}"
        )
    return [leaf for name in dict.fromkeys(kept) for leaf in tree_leaves(given[name])]


def _too_few(outputs: int, kept: int) -> str:
    if not kept:
        return "the model returns no tensor, so there is nothing to export"
    return (
        f"states has {kept} tensors, and the model returns {outputs}: what it is asked for first, "
        "then the next value of each"
    )


def _check_next(old: fx.Node, new: fx.Node, name: str) -> None:
    """Refuse a next value that a state cannot hold."""
    have, want = new.meta["val"], old.meta["val"]
    if (
        have.dtype is not want.dtype
        or have.dim() != want.dim()
        or any(
            isinstance(size, int) and size != other
            for size, other in zip(want.shape, have.shape, strict=True)
        )
    ):
        raise BackendError(
            f"output {name!r} is {_described(have)}, and would be the next value of state "
            f"{old.name!r}, which is {_described(want)}; return the next values last, in the order "
            "of states"
        )


def _described(value: Tensor) -> str:
    return f"{dtype_name(value.dtype)} [{', '.join(map(str, value.shape))}]"


def _output_names(program: ExportedProgram) -> list[str]:
    """Return names of a program's outputs: their path in what forward returns, or a number."""
    spec = program.call_spec.out_spec
    return [_joined(path) or f"output_{at}" for at, path in enumerate(output_paths(spec))]


def _joined(path: tuple[Any, ...]) -> str:
    """Return keys and places joined; empty for a place in a tuple, which says nothing."""
    parts = [
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path
    ]
    return "" if all(part.isdigit() for part in parts) else ".".join(parts)


def _shown(argument: Any) -> str:
    return repr(argument.value) if isinstance(argument, ConstantArgument) else str(argument)
