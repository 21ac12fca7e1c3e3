"""What has to change in a torch program before coremltools converts it rightly."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_REPEAT = torch.ops.aten.repeat_interleave.self_int


def spread_grouped_heads(program: ExportedProgram) -> None:
    """Repeat keys and values where several query heads share one, in place.

    coremltools 9.0 does not look at ``enable_gqa`` of ``scaled_dot_product_attention``, and fails
    on heads that differ in number. The repetition is what torch documents ``enable_gqa`` to mean.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is not _ATTENTION or not node.kwargs.get("enable_gqa"):
            continue
        query, key, value, *rest = node.args
        heads = query.meta["val"].shape[-3]
        with graph.inserting_before(node):
            node.args = (query, _repeat(graph, key, heads), _repeat(graph, value, heads), *rest)
        node.kwargs = {name: item for name, item in node.kwargs.items() if name != "enable_gqa"}
    graph.lint()


def _repeat(graph: torch.fx.Graph, node: torch.fx.Node, heads: int) -> torch.fx.Node:
    """Insert the repetition of ``[..., heads of the node, length, width]`` to ``heads``."""
    value = node.meta["val"]
    arguments = (heads // value.shape[-3], value.dim() - 3)
    made = graph.call_function(_REPEAT, (node, *arguments))
    made.meta["val"] = _REPEAT(value, *arguments)
    return made
