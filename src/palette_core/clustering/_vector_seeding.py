"""Compiled kernels of vector k-means: where entries start, and where they had better be.

Points are ``[N, D]`` float32 or float64. Weights are ``[N, 0]`` (none), ``[N, 1]`` (one weight
per point) or ``[N, D]`` float32 (one per coordinate; a distance is then Σ_d w_d (x_d − c_d)²).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palette_core.clustering._vector_search import search_all
from palette_core.compiled import kernel, kernel_with

_FROZEN = 4  # entries near one that goes which stay where they are, itself included

_jit = kernel
# No NaN comes in: with that promise a minimum vectorises, and no result depends on how.
_jit_min = kernel_with(fastmath={"nnan", "nsz"})


@_jit
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


@_jit
def distinct(points: Any, weights: Any, table: Any) -> Any:  # noqa: PLR0912
    """Collect the distinct points that have a weight, unless they are more than K.

    Arrays and bounds:
        table: ``[K, D]`` float64; its first rows are overwritten.

    Returns:
        how many there are, or K + 1 for more than K.
    """
    count, dim = points.shape
    limit = table.shape[0]
    slots = np.full(1 << 11, -1, dtype=np.int64)
    found = 0
    for i in range(count):
        own = 1.0
        if weights.shape[1]:
            own = 0.0
            for d in range(weights.shape[1]):
                own += weights[i, d]
        if not own > 0:
            continue
        key = np.uint64(1469598103934665603)
        for d in range(dim):
            x = np.float64(points[i, d])
            if x != 0:
                mantissa, exponent = math.frexp(x)
                bits = np.int64(mantissa * 9007199254740992.0) ^ np.int64(exponent)
                key = (key ^ np.uint64(bits)) * np.uint64(1099511628211)
            key = key ^ (key >> np.uint64(29))
        slot = np.int64(key & np.uint64(slots.shape[0] - 1))
        while True:
            k = slots[slot]
            if k < 0:
                if found == limit:
                    return limit + 1
                slots[slot] = found
                for d in range(dim):
                    table[found, d] = points[i, d]
                found += 1
                break
            same = True
            for d in range(dim):
                if table[k, d] != points[i, d]:
                    same = False
            if same:
                break
            slot = (slot + 1) & (slots.shape[0] - 1)
    return found


@_jit
def coreset(points: Any, weights: Any, draws: Any, chosen: Any, scale: Any) -> Any:
    """Draw points for seeding: half by weight, half by their cost from the mean.

    A lightweight coreset (Bachem, Lucic, Krause, Scalable k-means clustering via lightweight
    coresets, 2018): far-away points are sure to be seen, and ``scale`` makes up for it.

    Arrays and bounds:
        draws: ``[M]`` ascending float64 in [0, 1).
        chosen: ``[M]`` int64, overwritten by the points drawn.
        scale: ``[M]`` float64, overwritten by the factor of each one's weight.
    """
    count, dim = points.shape
    width = weights.shape[1]
    mean = np.zeros((1, dim))
    mass = np.zeros(dim)
    for i in range(count):
        for d in range(dim):
            w = 1.0
            if width:
                w = np.float64(weights[i, d if width == dim else 0])
            mean[0, d] += w * points[i, d]
            mass[d] += w
    for d in range(dim):
        mean[0, d] /= mass[d] if mass[d] > 0 else 1.0
    spread = 0.0
    for i in range(count):
        spread += cost(points, weights, i, mean, 0)
    total = _sum(mass)
    running = 0.0
    at = 0
    last = 0
    last_share = 1.0
    for i in range(count):
        own = np.float64(dim)
        if width:
            own = np.float64(0.0)
            for d in range(dim):
                own += weights[i, d if width == dim else 0]
        share = own / total
        if spread > 0:
            share = 0.5 * share + 0.5 * cost(points, weights, i, mean, 0) / spread
        running += share
        if share > 0:
            last = i
            last_share = share
        while at < draws.shape[0] and draws[at] < running:
            chosen[at] = i
            scale[at] = 1.0 / (share * draws.shape[0])
            at += 1
    while at < draws.shape[0]:
        chosen[at] = last
        scale[at] = 1.0 / (last_share * draws.shape[0])
        at += 1


@_jit
def cells_of_pairs(
    points: Any, weights: Any, low: Any, per_unit: Any, cells: Any, sums: Any, outside: Any
) -> Any:
    """Add up pairs by the cell of a grid that they lie in.

    Arrays and bounds:
        weights: ``[N, 0]`` or ``[N, 1]``.
        low: ``[2]`` float64, where the grid begins along each axis.
        per_unit: ``[2]`` float64, cells per unit.
        cells: number of cells along an axis.
        sums: ``[cells * cells, 4]`` float64, added to: Σ w, Σ w (x − low) along each axis,
            Σ w (x − low)² along both.
        outside: int64, overwritten by the points beyond the grid that have a weight.

    Returns:
        how many points lie beyond the grid, or -1 for more than there is room for.
    """
    far = 0
    for i in range(points.shape[0]):
        x = points[i, 0] - low[0]
        y = points[i, 1] - low[1]
        w = np.float64(weights[i, 0]) if weights.shape[1] else 1.0
        column, row = x * per_unit[0], y * per_unit[1]
        if 0.0 <= column < cells and 0.0 <= row < cells:
            c = np.int64(row) * cells + np.int64(column)
            sums[c, 0] += w
            sums[c, 1] += w * x
            sums[c, 2] += w * y
            sums[c, 3] += w * (x * x + y * y)
        elif w > 0:
            if far == outside.shape[0]:
                return -1
            outside[far] = i
            far += 1
    return far


@_jit
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
    columns = np.empty((dim, count))
    factors = np.ones((dim, count))
    costs = np.zeros(count)
    running = np.empty(count)
    chosen = np.empty(trials, dtype=np.int64)
    lows = np.empty((trials, count))
    for i in range(count):
        for d in range(dim):
            columns[d, i] = points[i, d]
            if width:
                factors[d, i] = weights[i, d if width == dim else 0]
            costs[i] += factors[d, i]
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
        for t in range(tried):
            _costs_after(columns, factors, chosen[t], costs, k > 0, lows[t])
            total = _sum(lows[t])
            if total < best_total:
                best_total = total
                best = t
        for i in range(count):
            costs[i] = lows[best, i]
        for d in range(dim):
            table[k, d] = columns[d, chosen[best]]
    return table.shape[0]


@_jit_min
def _costs_after(columns: Any, factors: Any, pick: Any, costs: Any, later: Any, out: Any) -> Any:
    """Write to ``out`` what every point costs once point ``pick`` is an entry too."""
    dim, count = columns.shape
    for i in range(count):
        out[i] = 0.0
    for d in range(dim):
        x = columns[d, pick]
        for i in range(count):
            gap = columns[d, i] - x
            out[i] += factors[d, i] * (gap * gap)
    if later:
        for i in range(count):
            out[i] = min(out[i], costs[i])


@_jit
def _sum(numbers: Any) -> Any:
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


@_jit
def swap_entries(points: Any, weights: Any, table: Any, order: Any, wanted: Any) -> Any:  # noqa: PLR0912
    """Move entries that help little to where points are served worst.

    An entry helps by what its points would cost more at their second nearest entry. The split
    entry is the one whose points cost most; the two halves are set apart along the coordinate
    that costs most (the two steps of Fritzke, The k-means-u* algorithm / Breathing k-means,
    2020, in one, so that there are never more than K entries).

    Arrays and bounds:
        table: ``[K, D]`` float64, overwritten by the new places.
        order: ``[K, K]`` neighbours of each entry, nearest first.
        wanted: most swaps.

    Returns:
        how many swaps were made.
    """
    count, dim = table.shape
    width = weights.shape[1]
    elementwise = width == dim and dim > 1
    columns = np.empty((dim, count))
    spread = np.zeros((count, dim))
    mass = np.zeros((count, dim))
    help_given = np.zeros(count)
    costs = np.zeros(count)
    frozen = np.zeros(count, dtype=np.uint8)
    room = np.empty(count)
    out = np.empty(2)
    for k in range(count):
        for d in range(dim):
            columns[d, k] = table[k, d]
    for i in range(points.shape[0]):
        k = search_all(points, weights, i, columns, room, out)
        factor = 1.0
        if width and not elementwise:
            factor = np.float64(weights[i, 0])
        help_given[k] += factor * (out[1] * out[1] - out[0])
        costs[k] += factor * out[0]
        for d in range(dim):
            w = np.float64(weights[i, d]) if elementwise else factor
            gap = points[i, d] - table[k, d]
            spread[k, d] += w * (gap * gap)
            mass[k, d] += w
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
