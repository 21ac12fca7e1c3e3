"""Palettized weights in the graphs that others trace finalized models to."""

from __future__ import annotations

from torch import fx, nn
from torch._ops import OpOverload

from palette_core.tensors.stored import StoredTensor


def traces_weights(model: nn.Module) -> bool:
    """Return whether a model is, or holds, a graph that decodes palettized weights.

    Tools that quantize activations or fuse layers return such graphs of finalized models. There the
    operator of a stored form, or the one that a backend has put in its place, reads buffers; the
    modules that held the palettes are gone. Both take all fields of a `StoredTensor`.
    """
    graphs = (module.graph for module in model.modules() if isinstance(module, fx.GraphModule))
    return any(_decodes(node.target) for graph in graphs for node in graph.nodes)


def _decodes(target: object) -> bool:
    if not isinstance(target, OpOverload):
        return False
    taken = {argument.name for argument in target._schema.arguments}
    return taken.issuperset(StoredTensor._fields[1:])
