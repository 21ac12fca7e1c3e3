"""One step between ``torch.export`` and a converter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram, default_decompositions
from torch.export.graph_signature import OutputKind

from export_rewrites._registry import known_rewrites
from export_rewrites.compiling import compiled_late
from export_rewrites.complex_numbers import write_out_complex
from export_rewrites.folding import fold_constants
from export_rewrites.naming import OUTPUT_KEYS, keys_of_outputs
from export_rewrites.passes import (
    drop_checks,
    drop_constant_inputs,
    drop_second_names,
    drop_unread,
    fill_defaults,
    free_views,
    join_views,
    name_outputs,
    rename_words,
)
from export_rewrites.repeats import decomposed
from export_rewrites.states import settle_extremes, write_out_shapes
from export_rewrites.tracing import summary
from palette_core.errors import BackendError

aten = torch.ops.aten
# Runtimes lack them, or compute in something else.
_DTYPES_OF_FEW = (torch.bfloat16, torch.float64, torch.complex64, torch.complex128)


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
    free_views(program.graph)
    drop_second_names(program)
    try:
        with compiled_late():
            program = decomposed(program, decompositions(dialect))
    except Exception as error:
        raise BackendError(
            _forgotten_writes(program)
            or f"the model's operations cannot be written in those that the converter has: "
            f"{summary(error)}"
        ) from error
    graph = program.graph_module.graph
    drop_checks(graph)
    fill_defaults(graph)
    drop_constant_inputs(program)
    fold_constants(program, lambda node: _untaken(node, dialect))
    write_out_complex(program)
    rename_words(program)
    write_out_shapes(program)
    settle_extremes(program)
    join_views(graph)
    graph.eliminate_dead_code()
    drop_unread(program)
    name_outputs(program)
    graph.lint()
    program.graph_module.recompile()
    return program


def _forgotten_writes(program: ExportedProgram) -> str:
    """Return, in words, which operations write to tensors that are no buffers; else nothing."""
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    found: dict[str, None] = {}
    for node in program.graph.nodes:
        target = node.target
        if not isinstance(target, OpOverload) or not target._schema.is_mutable:
            continue
        written: Any = node
        while isinstance(written, fx.Node) and written.op == "call_function":
            written = written.args[0] if written.args else None
        if isinstance(written, fx.Node) and written.name in constants:
            found[f"{target} ({module_of(node)})"] = None
    if not found:
        return ""
    return (
        f"{', '.join(found)} writes to a tensor that is no buffer of the model, which a file would "
        "forget; register_buffer it, and write to the model's attribute in forward"
    )


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


def _untaken(node: fx.Node, dialect: Dialect) -> bool:
    """Return whether a node is better computed now, if it can be."""
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.dtype in _DTYPES_OF_FEW:
        return True
    return isinstance(node.target, OpOverload) and not (
        node.target in dialect.keep or dialect.takes(node.target)
    )


# --- what is given out ----------------------------------------------------------------------------


def tidy_outputs(program: ExportedProgram) -> None:
    """Leave out outputs that are None, and give an output of its own to what is there twice.

    Converters fail on the one, and merge the other. A program's own module is of no use after.
    """
    (output,) = program.graph.find_nodes(op="output")
    specs = program.graph_signature.output_specs
    output.meta[OUTPUT_KEYS] = keys_of_outputs(program)
    kept: list[Any] = []
    seen: set[fx.Node] = set()
    for spec, value in zip(list(specs), output.args[0], strict=True):
        if value is None and spec.kind is OutputKind.USER_OUTPUT:
            specs.remove(spec)
            continue
        made = value
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(value, fx.Node):
            if value in seen or value.op == "placeholder":
                with program.graph.inserting_before(output):
                    made = copied(program.graph, value)
                spec.arg.name = made.name
            seen.add(value)
        kept.append(made)
    output.args = (tuple(kept),)
    program.graph_module.recompile()


def copied(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Add a node of the same values that no converter takes for the same one."""
    value = node.meta["val"]
    if value.dtype is torch.bool:
        made = graph.call_function(aten.logical_not.default, (node,))
        made.meta = {"val": value}
        made = graph.call_function(aten.logical_not.default, (made,))
    else:
        made = graph.call_function(aten.mul.Tensor, (node, 1))
    made.meta = {"val": value}
    return made


# --- what is left ---------------------------------------------------------------------------------


def module_of(node: fx.Node) -> str:
    """Return the name of the module in whose forward a node came about, in words."""
    return module_in(node.meta.get("nn_module_stack"))


def module_in(stack: Mapping[str, Any] | None) -> str:
    """Return the name of the innermost module of a node's ``nn_module_stack``, in words."""
    # transformers walks slices of module lists, which torch writes as if they were modules.
    names = [re.sub(r"slice\([^)]*\)\.", "", name) for name, _ in (stack or {}).values()]
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
