"""Large blocks of pairs as the cells of a grid, for the search of a good table.

Where many points lie close to each other, one point of their summed weight at their mean stands
for them all: what a table costs then changes by no more than they cost about that mean, whatever
the table, as long as no border of its entries cuts the cell. Unlike a random sample the cells
bring no noise, so the table that is best for them is nearly the best for the points.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palette_core.builtins.clusterers.kmeans_vector.sampling import cells_of_pairs

_SAMPLE = 4096  # points looked at to place the grid
_TAIL = 0.005  # share of these left out at either end
_WIDER = 0.25  # of what lies between, added at either end
_PER_ROOT = 16  # coarse cells along an axis, for each entry along it
_LEVELS = 3  # grids, each with twice as many cells along an axis as the one before
_POINTS_PER_CELL = 2  # at least
_MOST_FAR = 8  # one of so many points may lie beyond the grid
_SERVED = 2  # cells for each entry that may cost nothing in the end
_MOST_HIDDEN = 0.1  # of the least cost to be expected: what points may cost about their means

Floats = NDArray[Any]
Weighted = tuple[Floats, Floats]


def as_cells(points: Floats, weights: Floats, n_entries: int) -> list[Weighted]:
    """Return points and weights that stand for a block: few of them, more, and still more.

    Args:
        points: ``[N, D]``.
        weights: ``[N, 0]``, ``[N, 1]`` or ``[N, D]``; with the last there are no cells, since
            points of one cell may then belong to different entries.
        n_entries: K.

    Returns:
        for coarse cells, then for ever finer ones, ``[M, 2]`` points and ``[M, 1]`` float32
        weights up to 1; nothing unless the points are pairs, many, and close to each other.
    """
    count, dim = points.shape
    coarse = _PER_ROOT * math.ceil(math.sqrt(n_entries))
    if dim != 2 or weights.shape[1] == dim or count < _POINTS_PER_CELL * coarse * coarse:
        return []
    sample = points[:: max(1, count // _SAMPLE)].astype(np.float64)
    low, high = np.quantile(sample, (_TAIL, 1.0 - _TAIL), axis=0)
    room = _WIDER * (high - low)
    low, high = low - room, high + room
    if not (high > low).all():
        return []
    cells = coarse << (_LEVELS - 1)
    outside = np.empty(count // _MOST_FAR, np.int64)
    sums = np.zeros((cells * cells, 4))
    far = cells_of_pairs(points, weights, low, cells / (high - low), cells, sums, outside)
    if far < 0:
        return []
    grids = [sums]
    while cells > coarse:
        cells //= 2
        quarters = grids[0].reshape(cells, 2, 2 * cells, 4)
        halves = (quarters[:, 0] + quarters[:, 1]).reshape(cells * cells, 2, 4)
        grids.insert(0, halves[:, 0] + halves[:, 1])
    if _hidden(grids[0]) > _MOST_HIDDEN * _seen(grids[0], n_entries) / n_entries:
        return []
    outside = outside[:far]
    its_weights = weights[outside] if weights.shape[1] else np.ones((far, 1), np.float32)
    beyond = points[outside], its_weights
    return [_joined(grid, low, beyond) for grid in grids]


def _hidden(sums: Floats) -> float:
    """Return what points cost about the means of their cells."""
    mass, moment = sums[:, :1], sums[:, 1:3]
    return float(sums[:, 3].sum() - (moment**2 / np.where(mass > 0.0, mass, 1.0)).sum())


def _seen(sums: Floats, n_entries: int) -> float:
    """Return what the means of cells cost about that of all, but for those that cost most.

    These may be served by entries of their own, and then matter no more.
    """
    sums = sums.take(np.flatnonzero(sums[:, 0]), axis=0)
    kept = len(sums) - _SERVED * n_entries
    if kept <= 0:
        return 0.0
    one = sums.sum(axis=0)
    gaps = sums[:, 1:3] / sums[:, :1] - one[1:3] / one[0]
    costs = sums[:, 0] * (gaps**2).sum(axis=1)
    return float(np.partition(costs, kept)[:kept].sum())


def _joined(sums: Floats, low: Floats, beyond: Weighted) -> Weighted:
    """Return the means and weights of cells, and the points beyond the grid."""
    points, weights = beyond
    count = len(points)
    sums = sums.take(np.flatnonzero(sums[:, 0]), axis=0)
    mass = sums[:, :1]
    all_points = np.empty((len(sums) + count, 2), points.dtype)
    np.add(sums[:, 1:3] / mass, low, out=all_points[: len(sums)], casting="same_kind")
    all_points[len(sums) :] = points
    most = max(mass.max(initial=0.0), weights.max(initial=0.0))
    all_weights = np.empty((len(all_points), 1), np.float32)
    np.divide(mass, most, out=all_weights[: len(sums)], casting="same_kind")
    np.divide(weights, most, out=all_weights[len(sums) :], casting="same_kind")
    return all_points, all_weights
