"""Compiled kernels of vector k-means: Lloyd's iteration on one block.

Work is cut into fixed chunks whose sums are added in order, so a result does not depend on how
many threads share it. The kernels release the GIL.

Points are ``[N, D]`` float32 or float64. Weights are ``[N, 0]`` (none), ``[N, 1]`` (one weight
per point) or ``[N, D]`` float32 (one per coordinate; a distance is then Σ_d w_d (x_d − c_d)²).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palette_core._common.kernels import kernel
from palette_core.tensors.assignment.kernels import SLACK, assign_chunks, rank_neighbours


@kernel
def advance(
    points: Any,
    table: Any,
    means: Any,
    state: Any,
    sums: Any,
    mass: Any,
    worst: Any,
    drift: Any,
    total: Any,
    tol: Any,
) -> Any:
    """Move every entry to, or with momentum beyond, the mean of its points.

    Plain moves creep. Each goes on in the direction of the last by a growing share (Nesterov's
    scheme), and starts afresh when the cost rises (O'Donoghue & Candès, Adaptive restart for
    accelerated gradient schemes, 2015). A coordinate whose points all have zero weight stays
    where it is; an entry without points goes to a worst-served one, of which each chunk has
    one ready.

    Arrays and bounds:
        means: ``[K, D]`` the means found by the last call; overwritten by the present ones.
        state: ``[2]`` the cost at the last call (infinite at first) and the moves since the
            last start; updated.
        total: the present cost.
        drift: ``[K]`` overwritten by how far each entry moved.

    Returns:
        whether the cost fell by no more than ``tol`` times itself; the entries are then the
        means themselves.
    """
    chunks, count, dim = sums.shape
    if total > state[0]:
        state[1] = 0.0
    done = 0.0 <= state[0] - total <= tol * total
    state[0] = total
    share = 0.0 if done else state[1] / (state[1] + 3.0)
    state[1] += 1.0
    for k in range(count):
        used = 0.0
        far = 0.0
        for d in range(dim):
            summed = 0.0
            weight = 0.0
            for chunk in range(chunks):
                summed += sums[chunk, k, d]
                weight += mass[chunk, k, d]
            used += weight
            if weight > 0:
                mean = summed / weight
                place = mean + share * (mean - means[k, d])
                gap = place - table[k, d]
                far += gap * gap
                table[k, d] = place
                means[k, d] = mean
        if used <= 0:
            pick = 0
            for chunk in range(chunks):
                if worst[chunk, 0] > worst[pick, 0]:
                    pick = chunk
            if worst[pick, 0] > 0:
                i = np.int64(worst[pick, 1])
                worst[pick, 0] = 0.0
                done = False
                state[1] = 0.0
                for d in range(dim):
                    gap = points[i, d] - table[k, d]
                    far += gap * gap
                    table[k, d] = points[i, d]
                    means[k, d] = points[i, d]
        drift[k] = math.sqrt(far) * SLACK
    return done


@kernel
def iterate(
    points: Any,
    weights: Any,
    table: Any,
    order: Any,
    gaps: Any,
    drift: Any,
    codes: Any,
    lower: Any,
    sums: Any,
    mass: Any,
    worst: Any,
    totals: Any,
    means: Any,
    state: Any,
    max_iter: Any,
    tol: Any,
) -> Any:
    """Alternate assignment and moves on a whole block, until `advance` says it is done.

    For the arrays see `assign_chunks`, `rank_neighbours`, `advance`.

    Returns:
        the last cost, which is that of ``codes`` with the table before its last move.
    """
    total = 0.0
    for turn in range(max_iter):
        rank_neighbours(table, order, gaps)
        total = assign_chunks(
            points, weights, table, order, gaps, drift, codes, lower, turn > 0,
            0, sums.shape[0], sums, mass, worst, totals,
        )  # fmt: skip
        if advance(points, table, means, state, sums, mass, worst, drift, total, tol):
            break
    return total
