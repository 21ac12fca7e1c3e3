"""One step between ``torch.export`` and a converter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram, default_decompositions
from torch.export.graph_signature import ConstantArgument

from export_rewrites._registry import known_rewrites

aten = torch.ops.aten
_CHECKS = (
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
)
_COPIES = (aten.alias.default, aten.lift_fresh_copy.default, aten.detach.default)


@dataclass(frozen=True)
class Dialect:
    """Dialect that one converter takes.

    Attributes:
        takes: whether the converter has a conversion for an operation, right or wrong.
        rewrite: operations that it has and gets wrong for some arguments; these are rewritten
            where `REWRITES` has something for the arguments given.
        keep: operations that are left alone whatever ``takes`` says, because the caller has
            conversions of its own for them.
    """

    takes: Callable[[OpOverload], bool]
    rewrite: frozenset[OpOverload] = field(default_factory=frozenset)
    keep: frozenset[OpOverload] = field(default_factory=frozenset)


def rewritten(program: ExportedProgram, dialect: Dialect) -> ExportedProgram:
    """Return the same program in operations that a converter takes.

    Operations that it lacks are decomposed until none is left that can be: by `REWRITES`, and
    where there is nothing by torch's own decompositions. What is left is for `left_over`.

    Args:
        program: as ``torch.export.export`` returns it.
        dialect: what the converter takes.
    """
    program = program.run_decompositions(decompositions(dialect))
    graph = program.graph_module.graph
    _drop_checks(graph)
    _fill_defaults(graph)
    _drop_constant_inputs(program)
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()
    return program


def decompositions(dialect: Dialect) -> dict[Any, Callable[..., Any]]:
    """Return the table for ``run_decompositions``."""
    table: dict[Any, Callable[..., Any]] = {}
    for op, function in dict(default_decompositions()).items():
        if op not in dialect.keep and not dialect.takes(op):
            table[op] = function
    for op, rewrite in known_rewrites().items():
        if op not in dialect.keep and (op in dialect.rewrite or not dialect.takes(op)):
            table[op] = _once(op, rewrite.function, table.get(op))
    return table


_inside: ContextVar[frozenset[OpOverload]] = ContextVar(
    "export_rewrites_inside", default=frozenset()
)


def _once(
    op: OpOverload, function: Callable[..., Any], otherwise: Callable[..., Any] | None
) -> Callable[..., Any]:
    """Let a rewrite use its own operation, which then stays as it is, or is left to torch."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if op in _inside.get():
            return NotImplemented if otherwise is None else otherwise(*args, **kwargs)
        token = _inside.set(_inside.get() | {op})
        try:
            made = function(*args, **kwargs)
        finally:
            _inside.reset(token)
        if made is NotImplemented and otherwise is not None:
            return otherwise(*args, **kwargs)
        return made

    return call


# --- passes over the graph ------------------------------------------------------------------------


def _drop_constant_inputs(program: ExportedProgram) -> None:
    """Take inputs that are no tensors out: their values are in the program already."""
    specs = program.graph_signature.input_specs
    constants = {spec.arg.name for spec in specs if isinstance(spec.arg, ConstantArgument)}
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in constants and not node.users:
            program.graph.erase_node(node)
            specs[:] = [spec for spec in specs if spec.arg.name != node.name]


def _drop_checks(graph: fx.Graph) -> None:
    """Take out assertions, and copies that nothing distinguishes from what they copy."""
    for node in list(graph.nodes):
        if node.target in _CHECKS:
            graph.erase_node(node)
        elif node.target in _COPIES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _fill_defaults(graph: fx.Graph) -> None:
    """Write out positional arguments that ``torch.export`` leaves out as defaults.

    coremltools 9.0 and coreai-torch 0.4.3 count the arguments of some operations.
    """
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        if node.target.namespace != "aten":
            continue
        arguments = [a for a in node.target._schema.arguments if not a.kwarg_only]
        missing = arguments[len(node.args) :]
        if any(a.name in node.kwargs for a in missing):
            continue
        node.args = (*node.args, *(a.default_value for a in missing))


# --- what is left ---------------------------------------------------------------------------------


def module_of(node: fx.Node) -> str:
    """Return the name of the module in whose forward a node came about, in words."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    names = [name for name, _ in stack.values()]
    return f"in {names[-1]!r}" if names and names[-1] else "in the root module"


def left_over(
    program: ExportedProgram, taken: Callable[[fx.Node], bool]
) -> dict[str, list[fx.Node]]:
    """Return the nodes that a converter does not take, by operation and module in words."""
    found: dict[str, list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and not taken(node):
            found.setdefault(f"{node.target} ({module_of(node)})", []).append(node)
    return found
