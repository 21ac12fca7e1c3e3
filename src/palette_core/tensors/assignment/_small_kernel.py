"""One pass over many small blocks, without the interpreter in between."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel
from palette_core.tensors.assignment.kernels import assign_chunk


@kernel
def assign_small(
    points: Any, weights: Any, blocks: Any, tables: Any, codes: Any, sums: Any, mass: Any, cost: Any
) -> None:
    """Assign the points of blocks to their nearest entries, and add up.

    Args:
        points: ``[B, N, D]``.
        weights: ``[B, N, 0]``, ``[B, N, 1]`` or ``[B, N, D]``; see `kernels`.
        blocks: ``[b]`` int64, which ones.
        tables: ``[B, K, D]`` float64.
        codes: ``[B, N]`` uint8, overwritten, as are
        sums: ``[B, K, D]`` float64, Σ w x,
        mass: ``[B, K, D]`` float64, Σ w, and
        cost: ``[B]`` float64.
    """
    count = tables.shape[1]
    # Trying all entries needs no neighbours and no bounds.
    order, gaps = np.empty((0, 0), np.uint8), np.empty((0, 0))
    drift, worst = np.zeros(count), np.empty(2)
    lower = np.empty(points.shape[1], np.float32)
    for b in blocks:
        cost[b] = assign_chunk(
            points[b], weights[b], tables[b], order, gaps, drift, codes[b], lower, False,
            0, points.shape[1], sums[b], mass[b], worst,
        )  # fmt: skip
