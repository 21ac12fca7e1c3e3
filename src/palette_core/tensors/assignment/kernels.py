"""Compiled kernels of vector k-means: the nearest entry of each point.

All arithmetic is in float64 on the points as they are, so neither a large mean nor a wide range
of magnitudes costs accuracy.

Points are ``[N, D]`` float32 or float64. Weights are ``[N, 0]`` (none), ``[N, 1]`` (one weight
per point) or ``[N, D]`` float32 (one per coordinate; a distance is then Σ_d w_d (x_d − c_d)²).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel
from palette_core.tensors.assignment._all_kernels import LANES, nearest_in_lanes, search_all

CHUNK = 8192  # points whose sums are added up together, whoever does it
SLACK = 1.0 + 1e-9  # bounds are used only where rounding cannot spoil them
_SHRINK = 1.0 - 1e-6  # the same for bounds kept in float32
_MANY = 64  # entries from which it may pay to search outwards from a good guess
_FEW = 128  # coordinates of all entries up to which trying all beats any bounds


@kernel
def rank_neighbours(table: Any, order: Any, gaps: Any) -> Any:
    """Sort, for every entry, all entries by their distance to it.

    The order of the last call is taken as a start: entries move little between two iterations,
    and insertion sort is linear on what is nearly sorted.
    """
    count = table.shape[0]
    for a in range(count):
        for at in range(count):
            j = order[a, at]
            total = 0.0
            for d in range(table.shape[1]):
                gap = table[a, d] - table[j, d]
                total += gap * gap
            distance = math.sqrt(total)
            to = at
            while to > 0 and gaps[a, to - 1] > distance:
                gaps[a, to] = gaps[a, to - 1]
                order[a, to] = order[a, to - 1]
                to -= 1
            gaps[a, to] = distance
            order[a, to] = j


@inner_kernel
def search_near(  # noqa: PLR0912
    points: Any, weights: Any, i: Any, table: Any, order: Any, gaps: Any, start: Any, out: Any
) -> Any:
    """Find the entry nearest to point i, searching outwards from ``start``.

    Entries are met by growing distance from ``start``; by the triangle inequality none beyond
    (distance to start + distance to the best so far) can be nearer (sort-means; Phillips,
    Acceleration of k-means and related clustering algorithms, 2002). With weights per
    coordinate the distance to the best is bounded through the smallest weight.

    Arrays and bounds:
        out: ``[2]``: overwritten by the squared distance to the nearest entry, and by a lower
            bound of the distance to every other.

    Returns:
        the entry; the lowest index among equals.
    """
    count, dim = table.shape
    elementwise = weights.shape[1] == dim and dim > 1
    total = 0.0
    weighted = 0.0
    least = 1.0
    if elementwise:
        least = np.float64(weights[i, 0])
    for d in range(dim):
        gap = points[i, d] - table[start, d]
        total += gap * gap
        if elementwise:
            weighted += weights[i, d] * (gap * gap)
            least = min(least, np.float64(weights[i, d]))
    here = math.sqrt(total)
    first = weighted if elementwise else total
    second = np.inf
    best = start
    reach = np.inf if least <= 0 else math.sqrt(first / least)
    beyond = np.inf
    for at in range(count):
        gap = gaps[start, at]
        if gap > (here + reach) * SLACK:
            beyond = (gap - here) * math.sqrt(least)
            break
        j = np.int64(order[start, at])
        if j == start:
            continue
        total = 0.0
        if elementwise:
            for d in range(dim):
                gap = points[i, d] - table[j, d]
                total += weights[i, d] * (gap * gap)
        else:
            for d in range(dim):
                gap = points[i, d] - table[j, d]
                total += gap * gap
        if total < first or (total == first and j < best):
            if total < first:
                reach = np.inf if least <= 0 else math.sqrt(total / least)
            second = first
            first = total
            best = j
        elif total < second:
            second = total
    out[0] = first
    out[1] = min(math.sqrt(second), beyond)
    return best


@inner_kernel
def assign_chunk(  # noqa: PLR0912, PLR0915
    points: Any,
    weights: Any,
    table: Any,
    order: Any,
    gaps: Any,
    drift: Any,
    codes: Any,
    lower: Any,
    known: Any,
    lo: Any,
    hi: Any,
    sums: Any,
    mass: Any,
    worst: Any,
) -> Any:
    """Assign points lo … hi to their nearest entries and add up what the next table needs.

    A point keeps its entry unseen by the others while it is nearer than a lower bound of its
    distance to them, which shrinks with their moves (Hamerly, Making k-means even faster, 2010).

    Arrays and bounds:
        drift: ``[K]`` distances by which the entries moved since the last pass.
        codes: ``[N]`` uint8; where ``known``, a good guess on entry; the nearest on return.
        lower: ``[N]`` float32 bounds; meaningful on entry where ``known``. With few entries
            none are used, and none written where ``known``.
        sums: ``[K, D]`` float64, Σ w x of the points of each entry, overwritten.
        mass: ``[K, D]`` float64, Σ w, overwritten.
        worst: ``[2]`` float64, overwritten by the largest cost and the point that has it.

    Returns:
        the summed cost.
    """
    count, dim = table.shape
    width = weights.shape[1]
    elementwise = width == dim and dim > 1
    # With few entries, also for their number of directions, trying all is quicker.
    near = known and count >= max(_MANY, 4**dim)
    lanes = not elementwise and (not known or count * dim <= _FEW)
    columns = np.empty((dim, count))
    even = dim + dim % 2
    padded, of_lanes = np.zeros((count, even)), np.zeros((even, LANES))
    lane_costs, lane_best = np.empty((3, LANES)), np.empty(LANES, np.int64)
    most = 0
    for k in range(count):
        if drift[k] > drift[most]:
            most = k
        for d in range(dim):
            columns[d, k] = table[k, d]
            padded[k, d] = table[k, d]
            sums[k, d] = 0.0
            mass[k, d] = 0.0
    next_drift = 0.0
    for k in range(count):
        if k != most:
            next_drift = max(next_drift, drift[k])
    costs = np.empty(count)
    out = np.empty(2)
    highest, at = -1.0, lo
    total = 0.0
    for i in range(lo, hi):
        k = np.int64(codes[i])  # type: ignore[assignment]  # numba has one kind of int
        low = 0.0
        search = True
        if lanes:
            j = (i - lo) % LANES
            if j == 0:
                nearest_in_lanes(
                    points, i, min(hi, i + LANES), padded, not known, of_lanes, lane_costs,
                    lane_best,
                )  # fmt: skip
            k = lane_best[j]
            low = lane_costs[0, j]
            if not known:
                lower[i] = math.sqrt(lane_costs[1, j]) * _SHRINK
            codes[i] = k
            search = False
        elif known:
            stretch = 1.0
            if elementwise:
                stretch = 0.0
            for d in range(dim):
                gap = points[i, d] - table[k, d]
                if elementwise:
                    low += weights[i, d] * (gap * gap)
                    stretch = max(stretch, np.float64(weights[i, d]))
                else:
                    low += gap * gap
            moved = next_drift if k == most else drift[most]
            if elementwise:
                moved *= math.sqrt(stretch)
            bound = (lower[i] - moved) * _SHRINK
            lower[i] = bound
            if not elementwise and count > 1:
                bound = max(bound, 0.5 * gaps[k, 1])
            search = not (bound > 0 and low < bound * bound)
        if search:
            if near:
                k = search_near(points, weights, i, table, order, gaps, k, out)
            else:
                k = search_all(points, weights, i, columns, costs, out)
            low = out[0]
            lower[i] = out[1] * _SHRINK
            codes[i] = k
        if width == 0:
            mass[k, 0] += 1.0
            for d in range(dim):
                sums[k, d] += points[i, d]
        else:
            if not elementwise:
                low *= weights[i, 0]
            for d in range(dim):
                w = np.float64(weights[i, d if elementwise else 0])
                sums[k, d] += w * points[i, d]
                mass[k, d] += w
        total += low
        if low > highest:
            highest, at = low, i
    worst[0], worst[1] = highest, at
    if width == 0:
        for k in range(count):
            mass[k] = mass[k, 0]
    return total


@kernel
def assign_chunks(
    points: Any,
    weights: Any,
    table: Any,
    order: Any,
    gaps: Any,
    drift: Any,
    codes: Any,
    lower: Any,
    known: Any,
    first: Any,
    last: Any,
    sums: Any,
    mass: Any,
    worst: Any,
    totals: Any,
) -> Any:
    """Assign the points of the chunks first … last, and return their summed cost.

    Arrays and bounds:
        points: ``[N, D]``; for the others see `assign_chunk`, `rank_neighbours`.
        sums: ``[chunks, K, D]``; and so ``mass``, ``worst`` and ``totals`` lead with chunks.
    """
    total = 0.0
    for chunk in range(first, last):
        lo = chunk * CHUNK
        hi = min(points.shape[0], lo + CHUNK)
        totals[chunk] = assign_chunk(
            points,
            weights,
            table,
            order,
            gaps,
            drift,
            codes,
            lower,
            known,
            lo,
            hi,
            sums[chunk],
            mass[chunk],
            worst[chunk],
        )
        total += totals[chunk]
    return total
