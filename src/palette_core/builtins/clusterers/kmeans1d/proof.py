"""Which cells of a grid can hold a boundary of the optimum; all others stay closed for certain.

Let each closed cell t, of weight w_t and width h, stand at its mean. For any set of centroids,
the true cost is the cost with the cells at their means, plus the squares about those means
(whatever the centroids), minus a gain δ_t for each cell that a boundary cuts, since its points
may go to either side. With

    δ_t ≤ w_t · h · max(1.25 h, L / 2),   L the gap of the two centroids around the boundary,

the true cost of any K centroids is at least that of the best partition of cells minus the sum of
δ over the cells cut. Hence a cell is out when even the best partition of cells with a cut at its
edges, from a forward and a backward sweep at λ, costs more than a known partition by that sum.

At most K − 1 cells are cut, so the sum is at most that of the K − 1 largest δ. Nor is it more
than this: the K − 1 gaps do not overlap, and a gap lies within L / 2 of the boundary in its
middle. So Σ w_t L is at most the integral, over the range of all centroids, of the largest w_t
of any cell t whose gap may reach that far.

L is bounded by convexity. A further centroid put on the boundary would save at least
W · L² / 8, W the weight within L / 8 of it; and no further centroid of the optimum saves more
than its whole cost, or, once a first bound on δ is at hand, than about λ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from palette_core.builtins.clusterers.kmeans1d.charging import charged
from palette_core.builtins.clusterers.kmeans1d.costs import (
    merged_moments,
    path_cost,
)
from palette_core.builtins.clusterers.kmeans1d.solver import Floats, Ints, Partition, sums_of

_SLACK = 1e-9  # relative, for rounding in sums over many segments
_RUNS = 2048  # of cells whose gaps are bounded together
_ROUNDS = 2


def may_hold_a_cut(
    w: Floats, x: Floats, cell: Ints, best: Partition, k: int, width: float
) -> NDArray[Any]:
    """Return the closed cells that a boundary of an optimum may cut.

    Args:
        w: weights of the atoms.
        x: their ascending values.
        cell: the cell of each atom, −1 for single points.
        best: the best partition of the atoms.
        k: number of segments.
        width: of a cell, at most.
    """
    n = w.size
    closed = np.nonzero((cell >= 0) & (w > 0.0))[0]
    if n <= k or closed.size == 0:
        return cell[closed]
    through, whole = _best_through(w, x, best)
    known = float(path_cost(best.moments, n, best.cuts, best.cuts.size - 1))
    charge = best.charge
    slack = _SLACK * (known + charge * k)
    # how much dearer than the known partition the best one is that has a cut at either edge
    edge = np.minimum(through[closed], through[closed + 1]) - charge * k - known - slack
    covered = _Coverage(w, x, closed, width)
    hidden = 0.25 * width * width * float(w[closed].sum())
    saving = known + hidden
    for _ in range(_ROUNDS):
        total = covered.most_gained(covered.gaps(saving), k)
        saving = min(saving, max(charge, known - whole + charge * (k + 1)) + total + slack)
    return cell[closed[edge <= total]]


def _best_through(w: Floats, x: Floats, best: Partition) -> tuple[Floats, float]:
    """Return the least charged cost with a cut at each edge ``[n + 1]``, and overall."""
    n, ahead = w.size, best.ahead
    back, queue = np.empty(n + 1, np.int32), np.empty((2, n + 1), np.int32)
    if ahead is None:
        ahead = np.empty(n + 1)
        charged(best.moments, n, best.charge, ahead, back, queue)
    behind = np.empty(n + 1)
    w, x = w[::-1].copy(), -x[::-1]
    moments = merged_moments(w, x) if best.moments.ndim == 3 else sums_of(w, x)
    charged(moments, n, best.charge, behind, back, queue)
    return ahead + behind[::-1], float(ahead[n])


class _Coverage:
    """Gains at most of cells that boundaries cut, by the widest gaps of centroids around them.

    Neighbouring cells are taken together in runs; what holds for a run holds for all its cells.
    """

    def __init__(self, w: Floats, x: Floats, closed: NDArray[Any], width: float) -> None:
        self._w, self._width = w[closed], width
        places, runs = x[closed], min(closed.size, _RUNS)
        self._starts = np.arange(runs) * closed.size // runs
        ends = np.append(self._starts[1:], closed.size)
        self._sizes = ends - self._starts
        self._first, self._last = places[self._starts], places[ends - 1]
        self._most = np.maximum.reduceat(self._w, self._starts)
        # An atom in an open cell lies at x; one in a closed cell within ``width`` of it.
        self._x = x
        self._below = np.concatenate([[0.0], np.cumsum(w)])

    def gaps(self, saving: float) -> Floats:
        """Return, for each run, an upper bound of the gap given the most a centroid saves.

        Bisects for the least radius r at which what surely lies within r of any boundary in
        the middle of the run weighs enough that a gap of 8 r would save more than ``saving``.
        Elsewhere in the run a radius that is larger by the distance is enough.
        """
        x, width = 0.5 * (self._first + self._last), self._width
        low = np.full(x.size, 2.0 * width)
        high = np.full(x.size, 2.0 * (self._x[-1] - self._x[0]) + 4.0 * width)
        for _ in range(40):
            if not (high > 1.02 * low).any():
                break
            radius = np.sqrt(low * high)
            # boundary and points are each at most a width from where their atoms stand
            reach = radius - 2.0 * width
            first = np.searchsorted(self._x, x - reach, side="left")
            last = np.searchsorted(self._x, x + reach, side="right")
            weight = np.where(reach > 0.0, self._below[last] - self._below[first], 0.0)
            enough = 8.0 * radius * radius * weight > saving
            high, low = np.where(enough, radius, high), np.where(enough, low, radius)
        widest: Floats = 8.0 * (high + (x - self._first))
        return widest

    def most_gained(self, gaps: Floats, k: int) -> float:
        """Return the most that the cells gain which the boundaries of k centroids cut."""
        width = self._width
        largest = np.repeat(np.maximum(1.25 * width, 0.5 * gaps), self._sizes)
        most = _top(self._w * width * largest, k - 1)
        reach = 0.5 * gaps + 2.0 * width
        hull = float(self._x[0]) - width, float(self._x[-1]) + width
        spans = _integral(self._most, self._first - reach, self._last + reach, hull)
        return min(most, 1.25 * width * width * _top(self._w, k - 1) + 0.5 * width * spans)


def _top(gain: Floats, count: int) -> float:
    if gain.size > count:
        gain = np.partition(gain, gain.size - count)[gain.size - count :]
    return float(gain.sum())


def _integral(values: Floats, first: Floats, last: Floats, hull: tuple[float, float]) -> float:
    """Return the integral over a hull of the largest of the values there.

    The hull is cut into bins; a value that reaches a part of one reaches all of it. Each is noted
    for two overlapping runs of 2^l bins that hold all it reaches, and then handed down, level by
    level.

    Args:
        values: not negative.
        first: where each begins to reach.
        last: where it ends.
        hull: its ends.
    """
    start, unit = hull[0], (hull[1] - hull[0]) / _RUNS
    low = np.floor((first - start) / unit).clip(0, _RUNS - 1).astype(np.int64)
    high = np.floor((last - start) / unit).clip(0, _RUNS - 1).astype(np.int64)
    level = np.frexp((high - low + 1).astype(np.float64))[1] - 1  # 2^level bins at most
    levels = int(level.max()) + 1
    largest = np.zeros((levels, _RUNS))
    np.maximum.at(largest, (level, low), values)
    np.maximum.at(largest, (level, high + 1 - (1 << level)), values)
    for at in range(levels - 1, 0, -1):
        half = 1 << (at - 1)
        np.maximum(largest[at - 1], largest[at], out=largest[at - 1])
        np.maximum(largest[at - 1, half:], largest[at, :-half], out=largest[at - 1, half:])
    return float(largest[0].sum() * unit)
