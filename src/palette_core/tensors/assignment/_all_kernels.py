"""The nearest entry by trying all: of one point, or of many points at once where there are few.

The sums are the same, term by term, so the results are equal bit for bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel_with

LANES = 256  # points looked at together; what they need stays in the nearest cache

# No NaN comes in: with that promise a minimum vectorises, and no result depends on how.
_minimum_kernel = kernel_with(fastmath={"nnan", "nsz"}, no_cpython_wrapper=True)


@inner_kernel
def nearest_in_lanes(
    points: Any,
    begin: Any,
    end: Any,
    table: Any,
    bounds: Any,
    columns: Any,
    costs: Any,
    best: Any,
) -> None:
    """Find the nearest entry of points begin … end, at most `LANES` of them.

    Arrays and bounds:
        table: ``[K, D']`` float64, D' the even number from D on, padded with zeros.
        bounds: whether the second nearest distance is wanted, too.
        columns: ``[D', LANES]`` float64 scratch, zero where it pads.
        costs: ``[3, LANES]`` float64: overwritten by the squared distance to the nearest entry,
            to the second nearest (infinite unless wanted), and scratch.
        best: ``[LANES]`` int64, overwritten by the entries; the lowest among equals.
    """
    n, last = end - begin, table.shape[1] - 2
    for d in range(points.shape[1]):
        for j in range(n):
            columns[d, j] = points[begin + j, d]
    first, second, so_far = costs[0], costs[1], costs[2]
    for j in range(n):
        first[j] = np.inf
        second[j] = np.inf
        so_far[j] = 0.0
        best[j] = 0
    for k in range(table.shape[0]):
        for d in range(0, last, 2):
            _add(columns[d], columns[d + 1], table[k, d], table[k, d + 1], n, d > 0, so_far)
        x, y = columns[last], columns[last + 1]
        if bounds:
            _keep_two(x, y, table[k, last], table[k, last + 1], n, k, so_far, first, second, best)
        else:
            _keep_one(x, y, table[k, last], table[k, last + 1], n, k, so_far, first, best)


@inner_kernel
def _add(x: Any, y: Any, a: Any, b: Any, n: Any, later: Any, so_far: Any) -> None:
    """Add two coordinates to squared distances, or begin with them."""
    for j in range(n):
        own, other = x[j] - a, y[j] - b
        base = so_far[j] if later else 0.0
        so_far[j] = (base + own * own) + other * other


@inner_kernel
def _keep_one(
    x: Any, y: Any, a: Any, b: Any, n: Any, k: Any, so_far: Any, first: Any, best: Any
) -> None:
    """Add the last two, and keep entry k where it is nearer than all before it."""
    for j in range(n):
        own, other = x[j] - a, y[j] - b
        total = (so_far[j] + own * own) + other * other
        near = first[j]
        less = total < near
        first[j] = total if less else near
        best[j] = k if less else best[j]


@inner_kernel
def _keep_two(
    x: Any, y: Any, a: Any, b: Any, n: Any, k: Any, so_far: Any, first: Any, second: Any, best: Any
) -> None:
    """Do so, and keep the second smallest distance, too."""
    for j in range(n):
        own, other = x[j] - a, y[j] - b
        total = (so_far[j] + own * own) + other * other
        near, next_near = first[j], second[j]
        less = total < near
        left = near if less else total
        first[j] = total if less else near
        best[j] = k if less else best[j]
        second[j] = left if left < next_near else next_near


@inner_kernel
def search_all(points: Any, weights: Any, i: Any, columns: Any, costs: Any, out: Any) -> Any:
    """Find the entry nearest to point i by trying all; otherwise as `kernels.search_near`.

    ``columns`` is the table ``[D, K]``, so that the inner loops run over entries and vectorise;
    ``costs`` is room for K numbers.
    """
    dim, count = columns.shape
    elementwise = weights.shape[1] == dim and dim > 1
    for d in range(dim):
        x = np.float64(points[i, d])
        w = np.float64(weights[i, d]) if elementwise else 1.0
        if d == 0:
            for k in range(count):
                gap = x - columns[d, k]
                costs[k] = w * (gap * gap)
        else:
            for k in range(count):
                gap = x - columns[d, k]
                costs[k] += w * (gap * gap)
    first = _smallest(costs)
    best = 0
    while costs[best] != first:
        best += 1
    costs[best] = np.inf
    out[0] = first
    out[1] = math.sqrt(_smallest(costs))
    return best


@_minimum_kernel
def _smallest(numbers: Any) -> Any:
    low = np.inf
    for number in numbers:
        low = min(low, number)
    return low
