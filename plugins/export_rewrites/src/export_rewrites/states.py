"""Buffers that a model writes to: what converters want of the values, and of where they go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils._sympy.value_ranges import bound_sympy

from export_rewrites.indexing import static

aten = torch.ops.aten
EXTREMES = (torch.sym_max, torch.sym_min)


def write_out_shapes(program: ExportedProgram) -> None:
    """Give buffers values whose shape stands in the program, not only in torch's arithmetic.

    What is put together of parts of dynamic sizes has a known size as a whole, such as a cache of
    which the oldest entries are dropped: coremltools 9.0 and coreai-torch 0.4.3 do not see that,
    and refuse to write such a value to a state.
    """
    values = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")]
    if static(*(value for value in values if isinstance(value, Tensor))):
        return
    (output,) = program.graph.find_nodes(op="output")
    made: list[Any] = []
    for spec, node in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        if spec.kind is OutputKind.BUFFER_MUTATION and static(node.meta["val"]):
            made.append(_shaped(program.graph, node))
            spec.arg.name = made[-1].name
        else:
            made.append(node)
    output.args = (tuple(made),)


def _shaped(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Return a node of the same value, whose shape is an argument; others read it from there."""
    with graph.inserting_after(node):
        made = graph.call_function(aten.view.default, (node, list(node.meta["val"].shape)))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    return made


def settle_extremes(program: ExportedProgram) -> None:
    """Put numbers in the place of ``sym_max`` and ``sym_min`` that known bounds decide.

    Slices bring them in whose bounds torch does not know when it meets them; no converter takes
    them.
    """
    for target in EXTREMES:
        for node in program.graph.find_nodes(op="call_function", target=target):
            larger = _larger(node, program)
            if larger is not None:
                node.replace_all_uses_with(
                    node.args[larger if target is torch.sym_max else 1 - larger]
                )
    for node in reversed(program.graph.nodes):
        if node.target in EXTREMES and not node.users:
            program.graph.erase_node(node)


def _larger(node: fx.Node, program: ExportedProgram) -> int | None:
    """Return which of two numbers is never the smaller one, or None."""
    one, other = (_expression(argument) for argument in node.args)
    between = bound_sympy(one - other, program.range_constraints)
    if between.lower >= 0:
        return 0
    return 1 if between.upper <= 0 else None


def _expression(argument: Any) -> Any:
    value = argument.meta["val"] if isinstance(argument, fx.Node) else argument
    return value.node.expr if isinstance(value, torch.SymInt) else value
