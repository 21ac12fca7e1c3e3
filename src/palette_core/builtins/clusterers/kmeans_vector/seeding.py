"""Compiled kernels of vector k-means: where entries start, and where they had better be.

Points are ``[N, D]`` float32 or float64. Weights are ``[N, 0]`` (none), ``[N, 1]`` (one weight
per point) or ``[N, D]`` float32 (one per coordinate; a distance is then Σ_d w_d (x_d − c_d)²).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel, kernel_with

_FROZEN = 4  # entries near one that goes which stay where they are, itself included

# No NaN comes in: with that promise a minimum vectorises, and no result depends on how.
_minimum_kernel = kernel_with(fastmath={"nnan", "nsz"}, no_cpython_wrapper=True)


@inner_kernel
def cost(points: Any, weights: Any, i: Any, table: Any, k: Any) -> Any:
    """Return the weighted squared distance of point i to entry k."""
    total = 0.0
    if weights.shape[1] == points.shape[1] and weights.shape[1] > 1:
        for d in range(points.shape[1]):
            gap = points[i, d] - table[k, d]
            total += weights[i, d] * (gap * gap)
        return total
    for d in range(points.shape[1]):
        gap = points[i, d] - table[k, d]
        total += gap * gap
    return total * weights[i, 0] if weights.shape[1] else total


@kernel
def seed(points: Any, weights: Any, draws: Any, table: Any) -> Any:  # noqa: PLR0912
    """Greedy k-means++ seeding: each new entry is the best of several points drawn by cost.

    Arthur & Vassilvitskii, k-means++: the advantages of careful seeding, 2007, section 5.

    Arrays and bounds:
        draws: ``[K, L]`` float64 in [0, 1): L trials for each entry.
        table: ``[K, D]`` float64, overwritten.

    Returns:
        how many entries were placed: fewer than K where every point with a weight has cost zero.
    """
    count, dim = points.shape
    width = weights.shape[1]
    trials = draws.shape[1]
    columns = np.empty((dim, count), points.dtype)
    factors = np.ones((dim if width == dim else 1, count), np.float32)
    costs = np.zeros(count)
    running = np.empty(count)
    chosen = np.empty(trials, dtype=np.int64)
    lows = np.empty((2, count))  # of the best trial so far, and of the next one
    for i in range(count):
        for d in range(dim):
            columns[d, i] = points[i, d]
            row = d if width == dim else 0
            if width:
                factors[row, i] = weights[i, row]
            costs[i] += factors[row, i]
    for k in range(table.shape[0]):
        total = 0.0
        for i in range(count):
            total += costs[i]
            running[i] = total
        if not total > 0:
            return k
        tried = trials if k else 1
        for t in range(tried):
            goal = draws[k, t] * total
            low, high = 0, count - 1
            while low < high:
                middle = (low + high) // 2
                if running[middle] > goal:
                    high = middle
                else:
                    low = middle + 1
            while costs[low] <= 0:
                low -= 1
            chosen[t] = low
        best = 0
        best_total = np.inf
        row = 0
        for t in range(tried):
            _costs_after(columns, factors, chosen[t], costs, k > 0, lows[1 - row])
            total = sum_of(lows[1 - row])
            if total < best_total:
                best_total = total
                best = t
                row = 1 - row
        for i in range(count):
            costs[i] = lows[row, i]
        for d in range(dim):
            table[k, d] = columns[d, chosen[best]]
    return table.shape[0]


@_minimum_kernel
def _costs_after(columns: Any, factors: Any, pick: Any, costs: Any, later: Any, out: Any) -> Any:
    """Write to ``out`` what every point costs once point ``pick`` is an entry too."""
    dim, count = columns.shape
    for i in range(count):
        out[i] = 0.0
    for d in range(dim):
        x, row = np.float64(columns[d, pick]), d if factors.shape[0] == dim else 0
        for i in range(count):
            gap = columns[d, i] - x
            out[i] += np.float64(factors[row, i]) * (gap * gap)
    if later:
        for i in range(count):
            out[i] = min(out[i], costs[i])


@inner_kernel
def sum_of(numbers: Any) -> Any:
    """Add up in eight running sums: a fixed order that still vectorises."""
    parts = np.zeros(8)
    whole = numbers.shape[0] - numbers.shape[0] % 8
    for i in range(0, whole, 8):
        for j in range(8):
            parts[j] += numbers[i + j]
    total = 0.0
    for j in range(8):
        total += parts[j]
    for i in range(whole, numbers.shape[0]):
        total += numbers[i]
    return total


@kernel
def swap_entries(  # noqa: PLR0912
    points: Any, weights: Any, table: Any, codes: Any, second: Any, order: Any, wanted: Any
) -> Any:
    """Move entries that help little to where points are served worst.

    An entry helps by what its points would cost more at their second nearest entry. The split
    entry is the one whose points cost most; the two halves are set apart along the coordinate
    that costs most (the two steps of Fritzke, The k-means-u* algorithm / Breathing k-means,
    2020, in one, so that there are never more than K entries).

    Arrays and bounds:
        table: ``[K, D]`` float64, overwritten by the new places.
        codes: ``[N]`` uint8, the nearest entries.
        second: ``[N]`` float32 distances to the second nearest.
        order: ``[K, K]`` neighbours of each entry, nearest first.
        wanted: most swaps.

    Returns:
        how many swaps were made.
    """
    count, dim = table.shape
    width = weights.shape[1]
    elementwise = width == dim and dim > 1
    spread = np.zeros((count, dim))
    mass = np.zeros((count, dim))
    help_given = np.zeros(count)
    costs = np.zeros(count)
    frozen = np.zeros(count, dtype=np.uint8)
    for i in range(points.shape[0]):
        k = codes[i]
        factor = 1.0
        if width and not elementwise:
            factor = np.float64(weights[i, 0])
        near = 0.0
        for d in range(dim):
            w = np.float64(weights[i, d]) if elementwise else factor
            gap = points[i, d] - table[k, d]
            own = w * (gap * gap)
            near += own
            spread[k, d] += own
            mass[k, d] += w
        far = np.float64(second[i])
        help_given[k] += factor * (far * far) - near
        costs[k] += near
    made = 0
    while made < wanted:
        away = -1
        split = -1
        for k in range(count):
            if not frozen[k] and (away < 0 or help_given[k] < help_given[away]):
                away = k
        for k in range(count):
            if not frozen[k] and k != away and (split < 0 or costs[k] > costs[split]):
                split = k
        if away < 0 or split < 0 or costs[split] <= 0:
            break
        # The neighbours of the one that goes take over its points: let them be.
        frozen[split] = 1
        frozen[away] = 1
        for at in range(min(count, _FROZEN)):
            frozen[order[away, at]] = 1
        most = 0
        for d in range(dim):
            if spread[split, d] > spread[split, most]:
                most = d
        half = math.sqrt(0.75 * spread[split, most] / mass[split, most])
        for d in range(dim):
            table[away, d] = table[split, d]
        table[away, most] += half
        table[split, most] -= half
        made += 1
    return made
