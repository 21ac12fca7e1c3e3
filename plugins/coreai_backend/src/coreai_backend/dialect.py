"""What coreai-torch takes, and what it gets wrong."""

from __future__ import annotations

from functools import cache

import torch
from torch import fx
from torch._ops import OpOverload

from coreai_backend.ir import quiet
from export_rewrites import Dialect
from palette_core.tensors import OP_NAME

aten = torch.ops.aten
# Converted without a word into something else, for some arguments; the sweep of the tests tells.
_WRONG = (
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten.max_pool2d_with_indices.default,
    aten.scaled_dot_product_attention.default,
    aten.upsample_nearest2d.vec,
)
# Refused for some arguments.
_PARTLY = (
    aten.convolution.default,
    aten.index_put.default,
    aten.linalg_vector_norm.default,
)


@cache
def dialect() -> Dialect:
    """Return what the installed coreai-torch takes."""
    with quiet():
        from coreai_torch import get_decomp_table
        from coreai_torch._aten_to_core import _aten_to_core_resolver
    decomposed = set(get_decomp_table())

    def takes(op: OpOverload) -> bool:
        if op.namespace != "aten":
            return str(op).startswith(OP_NAME.replace("::", ".")) or op.namespace == "coreai"
        return str(op).removeprefix("aten.") in _aten_to_core_resolver and op not in decomposed

    return Dialect(takes, rewrite=frozenset((*_WRONG, *_PARTLY)))


def takes_node(node: fx.Node) -> bool:
    """Return whether the converter has a lowering for a node of a rewritten program."""
    with quiet():
        from coreai_torch._aten_to_core import _aten_to_core_resolver
    op = node.target
    if not isinstance(op, OpOverload) or op.namespace != "aten":
        return True  # left to the converter
    return str(op).removeprefix("aten.") in _aten_to_core_resolver
