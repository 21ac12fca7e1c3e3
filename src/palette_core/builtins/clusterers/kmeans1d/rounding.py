"""The best entries among the values that a 16-bit float has: a numba kernel.

The optimum over real entries, rounded entry by entry, is not the best that the dtype can hold:
with few significant bits a rounded entry moves its boundaries, and its neighbours had better
give way. So all entries are chosen anew, together, each from the values of the dtype near its
own. What the points between two neighbouring entries cost depends on these two only, which
makes it a shortest path from the lowest entry to the highest (the dynamic programme of Hassin
and Tamir 1991, "Improved complexity bounds for location problems on the real line", on windows).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel

_LEAST_GAIN = 1e-12  # of the cost of all points about zero: less is rounding
_MOST_ROUNDS = 20


@kernel
def settle(sums: Any, x: Any, grid: Any, at: Any, reach: int) -> None:
    """Move entries along the grid until none can be moved to lower Σ w (x − nearest entry)².

    Args:
        sums: ``[n + 1, 3]`` running Σw, Σwx, Σwx² of the values; see `running_sums`.
        x: ``[n]`` ascending values.
        grid: ascending values that an entry can have.
        at: ``[K]`` strictly ascending places of the entries on the grid, overwritten.
        reach: how far an entry is moved at a time, at most.
    """
    k, wide = at.size, 2 * reach + 1
    counts = np.empty((k, wide), np.int64)  # values at or below an entry
    total = np.empty((k, wide))  # least cost of these
    back = np.empty((k, wide), np.int64)
    least = np.inf
    for _ in range(_MOST_ROUNDS):
        for j in range(k):
            for t in range(wide):
                p = at[j] + t - reach
                total[j, t] = np.inf
                if p < 0 or p >= grid.size:
                    continue
                counts[j, t] = _count_to(x, grid[p], 0, x.size)
                if j == 0:
                    total[j, t] = _about(sums, 0, counts[j, t], grid[p])
                else:
                    _extend(sums, x, grid, at, j, t, counts, total, back)
        best, best_cost = reach, np.inf
        for t in range(wide):
            if total[k - 1, t] < np.inf:
                entry = grid[at[k - 1] + t - reach]
                cost = total[k - 1, t] + _about(sums, counts[k - 1, t], x.size, entry)
                if cost < best_cost:
                    best, best_cost = t, cost
        if not best_cost < least - _LEAST_GAIN * (sums[x.size, 2] - sums[0, 2]):
            return
        least = best_cost
        moved = False
        for j in range(k - 1, -1, -1):
            moved = moved or best != reach
            at[j] += best - reach
            best = back[j, best]
        if not moved:
            return


@kernel
def _extend(
    sums: Any, x: Any, grid: Any, at: Any, j: int, t: int, counts: Any, total: Any, back: Any
) -> None:
    """Find the best entry j - 1 to come before entry j at the t-th place of its window."""
    reach = (total.shape[1] - 1) // 2
    p = at[j] + t - reach
    end = counts[j, t]
    for s in range(total.shape[1]):
        q = at[j - 1] + s - reach
        if q >= p or not total[j - 1, s] < total[j, t]:
            continue
        start = counts[j - 1, s]
        middle = _count_to(x, 0.5 * grid[q] + 0.5 * grid[p], start, end)
        cost = total[j - 1, s] + _about(sums, start, middle, grid[q])
        cost += _about(sums, middle, end, grid[p])
        if cost < total[j, t]:
            total[j, t], back[j, t] = cost, s


@kernel
def _about(sums: Any, i: int, j: int, entry: float) -> float:
    """Return Σ w (x − entry)² of values i … j-1."""
    weight, moment = sums[j, 0] - sums[i, 0], sums[j, 1] - sums[i, 1]
    return float((sums[j, 2] - sums[i, 2]) - 2.0 * entry * moment + entry * entry * weight)


@kernel
def _count_to(x: Any, limit: float, low: int, high: int) -> int:
    """Return how many ascending values are at most ``limit``, which is from ``low`` to ``high``."""
    while low < high:
        middle = (low + high) // 2
        if x[middle] <= limit:
            low = middle + 1
        else:
            high = middle
    return low
