"""Compiled kernels of vector k-means: quick passes over blocks with few entries.

Every entry is tried for many points side by side, in the points' own precision, scaled by a power
of two that keeps squares within its range. Sums and costs are added up in float64. So a table
counts here as it is rounded to that precision, which is what becomes of it in the end.

Points are ``[N, D]`` float32 or float64. Weights are ``[N, 0]`` (none) or ``[N, 1]`` float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel, kernel_with
from palette_core.builtins.clusterers.kmeans_vector.kernels import advance
from palette_core.builtins.clusterers.kmeans_vector.lane_search import LANES, nearest, turn
from palette_core.builtins.clusterers.kmeans_vector.seeding import cost
from palette_core.tensors.assignment.kernels import CHUNK

MOST = 512  # coordinates of all entries up to which trying all beats any bounds
_TOP, _STEEPEST = 56, 100  # binary exponents: of the largest coordinate, scaled; of the scale

# No NaN comes in: with that promise a maximum vectorises, and no result depends on how.
_extreme_kernel = kernel_with(fastmath={"nnan", "nsz"}, no_cpython_wrapper=True)


@kernel
def scale_of(points: Any) -> Any:
    """Return the power of two by which to multiply points."""
    most = _largest(points.reshape(-1))
    return math.ldexp(1.0, min(_TOP - math.frexp(most)[1], _STEEPEST)) if most > 0 else 1.0


@_extreme_kernel
def _largest(numbers: Any) -> Any:
    most = abs(numbers[0])
    for number in numbers:
        most = max(most, abs(number))
    return np.float64(most)


@kernel
def pass_over(
    points: Any,
    weights: Any,
    table: Any,
    scale: Any,
    codes: Any,
    counts: Any,
    fresh: Any,
    first: Any,
    last: Any,
    sums: Any,
    mass: Any,
    totals: Any,
) -> Any:
    """Assign the points of the chunks first … last, and return their summed cost.

    Arrays and bounds:
        table: ``[K, D]`` float64.
        scale: of `scale_of`.
        codes: ``[N]`` uint8: of the last pass unless ``fresh``; overwritten.
        counts: ``[chunks, K]`` int64, points with a weight, of the last pass unless ``fresh``.
        fresh: whether to add all up anew; otherwise only points that change their entry are
            moved from sum to sum.
        sums, mass: ``[chunks, K, D]`` float64, Σ w x and Σ w, likewise.
        totals: ``[chunks]`` float64, overwritten by costs.
    """
    count, dim = table.shape
    wide = 2 if dim <= 2 else dim + -dim % 4
    entries = np.zeros((count + -count % 4, wide), points.dtype)
    entries[count:] = np.inf  # farther than any
    for k in range(count):
        for d in range(dim):
            entries[k, d] = table[k, d] * scale
    columns, by = np.zeros((wide, LANES), points.dtype), np.full(1, scale, points.dtype)[0]
    near = np.empty((3, LANES), points.dtype)
    best, moved, costs = np.empty(LANES, np.int32), np.empty(LANES, np.int64), np.empty(LANES)
    total, unit = 0.0, 1.0 / (scale * scale)
    for chunk in range(first, last):
        costs[:] = 0.0
        its_counts, its_sums, its_mass = counts[chunk], sums[chunk], mass[chunk]
        if fresh:
            its_counts[:], its_sums[:], its_mass[:] = 0, 0.0, 0.0
        end = min(points.shape[0], (chunk + 1) * CHUNK)
        for at in range(chunk * CHUNK, end, LANES):
            n = min(end - at, LANES)
            turn(points, at, n, by, columns)
            nearest(columns, entries, n, near, best)
            _add_costs(near[0], weights, at, n, costs)
            changed = _changed(best, codes, at, n, fresh, moved)
            if not fresh:
                _put(points, weights, moved, changed, codes, -1, its_counts, its_sums, its_mass)
            for j in range(n):
                codes[at + j] = best[j]
            _put(points, weights, moved, changed, codes, 1, its_counts, its_sums, its_mass)
        for k in range(count):
            if its_counts[k] == 0:  # what rounding left there is nothing
                its_sums[k], its_mass[k] = 0.0, 0.0
            its_mass[k] = its_mass[k, 0]
        totals[chunk] = 0.0
        for j in range(LANES):
            totals[chunk] += costs[j]
        totals[chunk] *= unit
        total += totals[chunk]
    return total


@kernel
def sum_up(
    points: Any, weights: Any, codes: Any, counts: Any, first: Any, last: Any, sums: Any, mass: Any
) -> None:
    """Add up the points of each entry anew, in the chunks first … last; see `pass_over`."""
    for chunk in range(first, last):
        its_counts, its_sums, its_mass = counts[chunk], sums[chunk], mass[chunk]
        its_counts[:], its_sums[:], its_mass[:] = 0, 0.0, 0.0
        begin, end = chunk * CHUNK, min(points.shape[0], (chunk + 1) * CHUNK)
        every = np.arange(begin, end)
        _put(points, weights, every, end - begin, codes, 1, its_counts, its_sums, its_mass)
        for k in range(mass.shape[1]):
            its_mass[k] = its_mass[k, 0]


@kernel
def find_worst(points: Any, weights: Any, table: Any, codes: Any, counts: Any, worst: Any) -> None:
    """Write the largest cost of each chunk, and the point that has it, if an entry has no points.

    Arrays and bounds:
        worst: ``[chunks, 2]`` float64, overwritten, or left alone.
    """
    served = 0
    for k in range(counts.shape[1]):
        for chunk in range(counts.shape[0]):
            if counts[chunk, k] > 0:
                served += 1
                break
    if served == counts.shape[1]:
        return
    for chunk in range(worst.shape[0]):
        worst[chunk, 0] = -1.0
        for i in range(chunk * CHUNK, min(points.shape[0], (chunk + 1) * CHUNK)):
            own = cost(points, weights, i, table, codes[i])
            if own > worst[chunk, 0]:
                worst[chunk, 0], worst[chunk, 1] = own, i


@kernel
def iterate(
    points: Any,
    weights: Any,
    table: Any,
    drift: Any,
    codes: Any,
    counts: Any,
    sums: Any,
    mass: Any,
    worst: Any,
    totals: Any,
    means: Any,
    state: Any,
    max_iter: Any,
    tol: Any,
) -> Any:
    """Do what `kernels.iterate` does, and end at the means of the last codes, added up anew."""
    total, scale = 0.0, scale_of(points)
    for _ in range(max_iter):
        # Anew where iteration starts or restarts, so that what rounding spoils is not kept.
        total = pass_over(
            points, weights, table, scale, codes, counts, state[1] <= 1.0, 0, sums.shape[0],
            sums, mass, totals,
        )  # fmt: skip
        find_worst(points, weights, table, codes, counts, worst)
        if advance(points, table, means, state, sums, mass, worst, drift, total, tol):
            break
    sum_up(points, weights, codes, counts, 0, sums.shape[0], sums, mass)
    settle(sums, mass, table)
    return total


@kernel
def settle(sums: Any, mass: Any, table: Any) -> None:
    """Write the means of entries that have points with a weight, from ``[chunks, K, D]`` sums."""
    for k in range(table.shape[0]):
        for d in range(table.shape[1]):
            summed, weight = 0.0, 0.0
            for chunk in range(sums.shape[0]):
                summed += sums[chunk, k, d]
                weight += mass[chunk, k, d]
            if weight > 0:
                table[k, d] = summed / weight


@inner_kernel
def _add_costs(near: Any, weights: Any, at: Any, n: Any, costs: Any) -> None:
    """Add what points cost to running sums, one for each lane."""
    if weights.shape[1]:
        flat = weights.reshape(-1)
        for j in range(n):
            costs[j] += np.float64(near[j]) * np.float64(flat[at + j])
    else:
        for j in range(n):
            costs[j] += np.float64(near[j])


@inner_kernel
def _changed(best: Any, codes: Any, at: Any, n: Any, fresh: Any, moved: Any) -> Any:
    """Write the points whose entry is new; return how many."""
    found = 0
    for j in range(n):
        moved[found] = at + j
        found += 1 if fresh else best[j] != codes[at + j]
    return found


@inner_kernel
def _put(
    points: Any,
    weights: Any,
    chosen: Any,
    n: Any,
    codes: Any,
    sign: Any,
    counts: Any,
    sums: Any,
    mass: Any,
) -> None:
    """Add n points to the sums of their entries, or take them away."""
    dim = points.shape[1]
    for m in range(n):
        i = chosen[m]
        w = np.float64(weights[i, 0]) if weights.shape[1] else 1.0
        if w > 0:
            k = np.int64(codes[i])
            counts[k] += sign
            w *= sign
            mass[k, 0] += w
            for d in range(dim):
                sums[k, d] += w * points[i, d]
