"""Compiled kernels of vector k-means: few points that stand for many.

Points are ``[N, D]`` float32 or float64. Weights are ``[N, 0]`` (none), ``[N, 1]`` (one weight
per point) or ``[N, D]`` float32 (one per coordinate; a distance is then Σ_d w_d (x_d − c_d)²).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palette_core._common.kernels import kernel
from palette_core.builtins.clusterers.kmeans_vector.seeding import cost, sum_of


@kernel
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


@kernel
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
    total = sum_of(mass)
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


@kernel
def cells_of_pairs(
    points: Any,
    weights: Any,
    low: Any,
    per_unit: Any,
    cells: Any,
    top: Any,
    places: Any,
    sums: Any,
    squares: Any,
    outside: Any,
) -> Any:
    """Add up pairs by the cell that they lie in, in a band of rows of a grid.

    Arrays and bounds:
        weights: ``[N, 0]`` or ``[N, 1]``.
        low: ``[2]`` float64, where the grid begins along each axis.
        per_unit: ``[2]`` float64, cells per unit.
        cells: number of cells along an axis.
        top: the first row of the band.
        places: ``[rows * cells]`` int32, overwritten by the row of ``sums`` for each cell of the
            band, -1 where no point lies.
        sums: ``[M, 3]`` float64, overwritten: Σ w, Σ w (x − low) along each axis.
        squares: ``[1]`` float64, added to: Σ w (x − low)² along both axes, of the band.
        outside: int64, overwritten by the points beyond the grid that have a weight.

    Returns:
        how many points lie beyond the grid, or -1 for more than there is room for.
    """
    far, used, rows = 0, 0, places.shape[0] // cells
    for c in range(places.shape[0]):
        places[c] = -1
    for i in range(points.shape[0]):
        x = points[i, 0] - low[0]
        y = points[i, 1] - low[1]
        w = np.float64(weights[i, 0]) if weights.shape[1] else 1.0
        column, row = x * per_unit[0], y * per_unit[1]
        if 0.0 <= column < cells and 0.0 <= row < cells:
            r = np.int64(row) - top
            if r < 0 or r >= rows:
                continue
            c = r * cells + np.int64(column)
            if places[c] < 0:
                places[c] = used
                used += 1
                for j in range(3):
                    sums[places[c], j] = 0.0
            at = places[c]
            sums[at, 0] += w
            sums[at, 1] += w * x
            sums[at, 2] += w * y
            squares[0] += w * (x * x + y * y)
        elif w > 0:
            if far == outside.shape[0]:
                return -1
            outside[far] = i
            far += 1
    return far
