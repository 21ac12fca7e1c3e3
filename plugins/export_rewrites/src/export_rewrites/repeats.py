"""Decomposition of a program whose operations come again and again, each of a kind once.

torch traces a whole program anew to decompose it, the layers of a deep model each like the one
before. Here one small program holds an operation of each kind, torch decomposes that, and the
program takes the results over. Kinds are told apart by operation, by all arguments, and by shape,
strides, dtype and device of tensors, which is all that a decomposition sees.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils._pytree import tree_flatten

from export_rewrites.passes import CHECKS
from export_rewrites.plainness import is_plain

Table = Mapping[Any, Callable[..., Any]]
_OPS = ("placeholder", "call_function", "output")
_KEPT_META = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "custom")
# Strides that a decomposition changes make new kinds of what reads them.
_ROUNDS = 8


def decomposed(program: ExportedProgram, table: Table) -> ExportedProgram:
    """Return what ``program.run_decompositions(table)`` does.

    Assertions are left out, and numbers in names of nodes may be others.

    Args:
        program: left as it is; one that is not plain, see `plainness`, is torch's as a whole.
        table: by operation.
    """
    if not is_plain(program):
        return _by_torch(program, table)
    known: dict[Any, _Made] = {}
    for _ in range(_ROUNDS):
        splicing = _Splicing(program, known)
        if not splicing.unknown:
            return splicing.program()
        found = _decomposed_once(splicing.unknown, table)
        if found is None:
            break
        known.update(found)
    return _by_torch(program, table)


def _by_torch(program: ExportedProgram, table: Table) -> ExportedProgram:
    made: ExportedProgram = program.run_decompositions(dict(table))
    return made


# --- kinds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """A call of an operation; nodes of its arguments are numbered."""

    target: OpOverload
    args: Any
    kwargs: Any
    values: tuple[Tensor, ...]
    result: Any


@dataclass(frozen=True)
class _Made:
    """Result of an operation: nodes in order, what they read by number, and what is returned.

    Arguments come first in these numbers.
    """

    steps: tuple[tuple[OpOverload | Callable[..., Any], Any, Any, fx.Node], ...]
    results: tuple[Any, ...]
    several: bool


def _kind(target: Any, args: Any, kwargs: Any, values: tuple[Tensor, ...]) -> Any:
    """Return what tells a call from those that become something else."""
    return (
        target,
        _told(args),
        _told(kwargs),
        tuple(
            (v.shape, v.stride(), v.storage_offset(), v.dtype, v.device, v.requires_grad)
            for v in values
        ),
    )


def _told(value: Any) -> Any:
    """Return a hashable form of arguments, in which 1, 1.0 and True differ."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_told, value))
    if isinstance(value, dict):
        return tuple((key, _told(each)) for key, each in value.items())
    if isinstance(value, (int, float, complex)):
        return type(value), repr(value)
    return value


@dataclass(frozen=True)
class _Slot:
    """The place of an argument or of a result that is a node."""

    at: int


# --- taking results over --------------------------------------------------------------------------


class _Splicing:
    """One pass over a program, in which what is known of it is put together.

    Attributes:
        unknown: a call of each kind that is not known yet, by kind.
    """

    def __init__(self, program: ExportedProgram, known: Mapping[Any, _Made]) -> None:
        self._program, self._known = program, known
        self.unknown: dict[Any, _Call] = {}
        self._graph = fx.Graph()
        self._new: dict[fx.Node, Any] = {}
        for node in program.graph.nodes:
            self._take(node)

    def program(self) -> ExportedProgram:
        """Return the new program, once nothing is unknown."""
        old = self._program
        self._graph.eliminate_dead_code()
        signature = old.graph_signature
        inputs = [InputSpec(s.kind, s.arg, s.target, s.persistent) for s in signature.input_specs]
        outputs = []
        (output,) = self._graph.find_nodes(op="output")
        for spec, node in zip(signature.output_specs, output.args[0], strict=True):
            arg = TensorArgument(node.name) if isinstance(node, fx.Node) else spec.arg
            outputs.append(OutputSpec(spec.kind, arg, spec.target))
        return ExportedProgram(
            root=old.graph_module,
            graph=self._graph,
            graph_signature=ExportGraphSignature(inputs, outputs),
            state_dict=dict(old.state_dict),
            range_constraints=dict(old.range_constraints),
            module_call_graph=[_giving(outputs, entry) for entry in old.module_call_graph],
            example_inputs=old.example_inputs,
            constants=old.constants,
        )

    def _take(self, node: Any) -> None:
        if node.op == "placeholder":
            self._new[node] = made = self._graph.node_copy(node)
            made.name = node.name  # torch itself gives some that fx would not, such as ``input``
        elif node.op == "output":
            made = self._graph.output(fx.node.map_arg(node.args[0], self._new.__getitem__))
            made.meta = dict(node.meta)
        elif node.target is operator.getitem:
            self._new[node] = self._new[node.args[0]][node.args[1]]
        elif node.target not in CHECKS:
            self._new[node] = self._call(node)

    def _call(self, node: Any) -> Any:
        read: dict[fx.Node, int] = {}

        def slot(source: fx.Node) -> Any:
            return _Slot(read.setdefault(self._new[source], len(read)))

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), slot)
        values = tuple(source.meta["val"] for source in read)
        kind = _kind(node.target, args, kwargs, values)
        if kind in self._known:
            return self._spliced(node, self._known[kind], list(read))
        self.unknown.setdefault(kind, _Call(node.target, args, kwargs, values, node.meta["val"]))
        return self._as_it_is(node)

    def _spliced(self, node: fx.Node, made: _Made, nodes: list[fx.Node]) -> Any:
        for target, args, kwargs, source in made.steps:
            given = _filled(args, nodes), _filled(kwargs, nodes)
            nodes.append(self._added(target, given, node, source.meta))
        results = _filled(made.results, nodes)
        return results if made.several else results[0]

    def _as_it_is(self, node: fx.Node) -> Any:
        """Return what stands for a result of an unknown kind: tensors as torch saw them."""
        value = node.meta["val"]
        if isinstance(value, Tensor):
            return self._added(node.target, ((), {}), node, {"val": value})
        return [self._added(node.target, ((), {}), node, {"val": each}) for each in value]

    def _added(self, target: Any, given: Any, of: fx.Node, meta: Mapping[str, Any]) -> fx.Node:
        args, kwargs = given
        made = self._graph.create_node("call_function", target, args, kwargs, _base_name(target))
        made.meta = {key: of.meta[key] for key in _KEPT_META if key in of.meta}
        made.meta["val"] = meta["val"]
        return made


def _giving(outputs: list[OutputSpec], entry: ModuleCallEntry) -> ModuleCallEntry:
    """Return an entry for the program as a whole with its outputs; others as they are."""
    if entry.fqn or entry.signature is None:
        return entry
    given = [spec.arg for spec in outputs]
    return replace(entry, signature=replace(entry.signature, outputs=given))


def _filled(parts: Any, nodes: list[fx.Node]) -> Any:
    """Return arguments with nodes in the place of their numbers."""
    if isinstance(parts, _Slot):
        return nodes[parts.at]
    if isinstance(parts, (list, tuple)):
        return type(parts)(_filled(part, nodes) for part in parts)
    if isinstance(parts, dict):
        return {key: _filled(part, nodes) for key, part in parts.items()}
    return parts


def _base_name(target: Any) -> str:
    """Return what torch's own tracer calls nodes of an operation."""
    packet = getattr(target, "overloadpacket", target)
    return str(packet.__name__)


# --- torch's part ---------------------------------------------------------------------------------


def _decomposed_once(calls: Mapping[Any, _Call], table: Table) -> dict[Any, _Made] | None:
    """Return what torch makes of calls; None where it fails, or brings constants in."""
    try:
        made = _by_torch(_as_program(calls), table)
    # The whole program is left to torch, whose error then names what it is about.
    except Exception:
        return None
    specs = made.graph_signature
    plain = all(spec.kind is InputKind.USER_INPUT for spec in specs.input_specs) and all(
        spec.kind is OutputKind.USER_OUTPUT for spec in specs.output_specs
    )
    if not plain or any(n.op not in _OPS or n.target in CHECKS for n in made.graph.nodes):
        return None
    inputs = iter(made.graph.find_nodes(op="placeholder"))
    (output,) = made.graph.find_nodes(op="output")
    outputs = iter(output.args[0])
    found = {}
    for kind, call in calls.items():
        own = [next(inputs) for _ in call.values]
        several = not isinstance(call.result, Tensor)
        results = [next(outputs) for _ in range(len(call.result) if several else 1)]
        found[kind] = _made(own, results, several)
    return found


def _as_program(calls: Mapping[Any, _Call]) -> ExportedProgram:
    """Return a program of calls that have nothing to do with one another."""
    graph, names = fx.Graph(), count()
    inputs: dict[Any, list[fx.Node]] = {}
    for kind, call in calls.items():
        inputs[kind] = [graph.placeholder(f"value_{next(names)}") for _ in call.values]
        for node, value in zip(inputs[kind], call.values, strict=True):
            node.meta["val"] = value
    outputs: list[fx.Node] = []
    for kind, call in calls.items():
        args, kwargs = _filled((call.args, call.kwargs), inputs[kind])
        made = graph.call_function(call.target, args, kwargs)
        made.meta["val"] = call.result
        if isinstance(call.result, Tensor):
            outputs.append(made)
            continue
        for at, value in enumerate(call.result):
            outputs.append(graph.call_function(operator.getitem, (made, at)))
            outputs[-1].meta["val"] = value
    graph.output(tuple(outputs))
    placeholders = [node for nodes in inputs.values() for node in nodes]
    in_spec = tree_flatten((tuple(0 for _ in placeholders), {}))[1]
    out_spec = tree_flatten(tuple(0 for _ in outputs))[1]
    taken = [InputSpec(InputKind.USER_INPUT, TensorArgument(n.name), None) for n in placeholders]
    given = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(n.name), None) for n in outputs]
    root = ModuleCallSignature([], [], in_spec, out_spec)
    return ExportedProgram(
        root={},
        graph=graph,
        graph_signature=ExportGraphSignature(taken, given),
        state_dict={},
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", root)],
        constants={},
    )


def _made(inputs: list[fx.Node], results: list[Any], several: bool) -> _Made:
    """Return the part of a program that leads from inputs to results."""
    needed: set[fx.Node] = set()
    waiting = [node for node in results if isinstance(node, fx.Node)]
    while waiting:
        node = waiting.pop()
        if node not in needed and node.op == "call_function":
            needed.add(node)
            waiting += node.all_input_nodes
    slots: dict[fx.Node, Any] = {node: _Slot(at) for at, node in enumerate(inputs)}
    steps: list[Any] = []
    for node in sorted(needed):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), slots.__getitem__)
        steps.append((node.target, args, kwargs, node))
        slots[node] = _Slot(len(slots))
    return _Made(tuple(steps), fx.node.map_arg(tuple(results), slots.__getitem__), several)
