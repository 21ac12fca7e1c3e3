"""Large blocks of pairs as the cells of a grid, for the search of a good table.

Where many points lie close to each other, one point of their summed weight at their mean stands
for them all: what a table costs then changes by no more than they cost about that mean, whatever
the table, as long as no border of its entries cuts the cell. Unlike a random sample the cells
bring no noise, so the table that is best for them is nearly the best for the points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palette_core.builtins.clusterers.kmeans_vector.sampling import cells_of_pairs

_SAMPLE = 4096  # points looked at to place the grid
_TAIL = 0.005  # share of these left out at either end
_WIDER = 0.25  # of what lies between, added at either end
_PER_ROOT = 16  # coarse cells along an axis, for each entry along it
_LEVELS = 2  # grids, each with twice as many cells along an axis as the one before
_POINTS_PER_CELL = 2  # at least
_MOST_FAR = 8  # one of so many points may lie beyond the grid
_SERVED = 2  # cells for each entry that may cost nothing in the end
_ROW = 24  # bytes for the sums of a cell
_STRIP = 1 << 12  # cells whose sums stand beside each other, empty ones too
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
    levels, squares = [_Level(low, points.dtype) for _ in range(_LEVELS)], np.zeros(1)
    coarsest: list[Floats] = []
    # Many cells take turns, in bands, in memory that had better be less than the points'.
    bands = 1 if cells * cells * _ROW <= points.nbytes else 4
    places = np.empty(cells * cells // bands, np.int32)
    sums = np.empty((min(count, places.size), 3))
    far = 0
    for band in range(bands):
        far = cells_of_pairs(
            points, weights, low, cells / (high - low), cells, band * cells // bands, places,
            sums, squares, outside,
        )  # fmt: skip
        if far < 0:
            return []
        for strip in _strips(places, sums, cells):
            filled = [grid.take(np.flatnonzero(grid[:, 0]), axis=0) for grid in strip]
            coarsest.append(filled[0])
            for level, found in zip(levels, filled, strict=True):
                level.add(found)
    del places, sums
    all_coarse = np.concatenate(coarsest)
    coarsest.clear()
    hidden = float(squares[0]) - float((all_coarse[:, 1:] ** 2 / all_coarse[:, :1]).sum())
    if hidden > _MOST_HIDDEN * _seen(all_coarse, n_entries) / n_entries:
        return []
    del all_coarse
    outside = outside[:far]
    its_weights = weights[outside] if weights.shape[1] else np.ones((far, 1), np.float32)
    return [level.joined(points[outside], its_weights) for level in levels]


def _strips(places: NDArray[np.int32], sums: Floats, cells: int) -> Iterator[list[Floats]]:
    """Yield the sums of some rows of cells, on each level from the coarsest on, ``[M, 3]``."""
    whole = cells << (_LEVELS - 1)  # rows that make one of the coarsest level
    size = max(_STRIP // whole, 1) * whole
    for at in range(0, places.size, size):
        strip = places[at : at + size]
        there = np.flatnonzero(strip >= 0)
        grids = [np.zeros((strip.size, 3))]
        grids[0][there] = sums[strip[there]]
        along = cells
        for _ in range(_LEVELS - 1):
            along //= 2
            quarters = grids[0].reshape(-1, 2, 2 * along, 3)
            halves = (quarters[:, 0] + quarters[:, 1]).reshape(-1, 2, 3)
            grids.insert(0, halves[:, 0] + halves[:, 1])
        yield grids


class _Level:
    """The weights and means of the cells of one level, added strip by strip."""

    def __init__(self, low: Floats, dtype: np.dtype[Any]) -> None:
        self._low, self._dtype = low, dtype
        self._mass: list[Floats] = []
        self._means: list[Floats] = []

    def add(self, sums: Floats) -> None:
        """Add cells that have a weight, by their sums ``[M, 3]``."""
        self._mass.append(sums[:, :1].copy())
        self._means.append((sums[:, 1:] / sums[:, :1] + self._low).astype(self._dtype))

    def joined(self, points: Floats, weights: Floats) -> Weighted:
        """Return the means and weights of cells, and the points beyond the grid."""
        all_points = np.concatenate([*self._means, points])
        self._means.clear()
        most = max(weights.max(initial=0.0), *(mass.max(initial=0.0) for mass in self._mass))
        parts = ((mass / most).astype(np.float32) for mass in (*self._mass, weights))
        return all_points, np.concatenate(list(parts))


def _seen(sums: Floats, n_entries: int) -> float:
    """Return what the means of cells cost about that of all, but for those that cost most.

    These may be served by entries of their own, and then matter no more.
    """
    kept = len(sums) - _SERVED * n_entries
    if kept <= 0:
        return 0.0
    one = sums.sum(axis=0)
    gaps = sums[:, 1:] / sums[:, :1] - one[1:] / one[0]
    costs = sums[:, 0] * (gaps**2).sum(axis=1)
    return float(np.partition(costs, kept)[:kept].sum())
