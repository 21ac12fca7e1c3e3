"""Advice to readers of a plan."""

from __future__ import annotations

import math

from palette_core.planning import Plan

_BLOCK, _MOST_BITS = 64, 4


def where_no_data(plan: Plan) -> str | None:
    """Return what to say about scalars of few bits, clustered without data and without scales."""
    found = [
        item
        for item in plan
        if item.spec.algorithm is None
        and item.spec.cluster_dim == 1
        and item.spec.n_bits <= _MOST_BITS
        and not item.spec.is_scaled
        and math.prod(item.shape) // item.shape[item.axis] % _BLOCK == 0
    ]
    if not found:
        return None
    return (
        f"no data? For {len(found)} of these tensors, granularity per_tensor with scale_block_size "
        f"{_BLOCK} keeps more of the model at a quarter of a bit per weight, where the backend "
        "takes block scales"
    )
