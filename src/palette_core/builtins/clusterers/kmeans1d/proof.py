"""Which cells of a grid can hold a boundary of the optimum; all others stay closed for certain.

Let each closed cell t, of weight w_t and width h, stand at its mean. For any set of centroids,
the true cost is the cost with the cells at their means, plus the squares about those means
(whatever the centroids), minus a gain δ_t for each cell that a boundary cuts, since its points
may go to either side. With

    δ_t ≤ w_t · h · max(1.25 h, L / 2),   L the gap of the two centroids around the boundary,

and at most K − 1 cells cut, the true cost of any K centroids is at least that of the best
partition of cells minus the K − 1 largest δ. Hence a cell is out when even the best partition of
cells with a cut at its edges, from a forward and a backward sweep at λ, costs more than a known
partition by that sum.

L is bounded by convexity. A further centroid put on the boundary would save at least
W · L² / 8, W the weight within L / 8 of it; and no further centroid of the optimum saves more
than its whole cost, or, once a first bound on δ is at hand, than about λ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from palette_core.builtins.clusterers.kmeans1d.costs import (
    charged,
    merged_moments,
    path_cost,
)
from palette_core.builtins.clusterers.kmeans1d.solver import Floats, Ints, Partition, sums_of

_SLACK = 1e-9  # relative, for rounding in sums over many segments


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
    covered = _Coverage(w, x, cell, width)
    hidden = 0.25 * width * width * float(w[closed].sum())
    saving = known + hidden
    for _ in range(3):
        gain = _gains(w, closed, covered.gaps(closed, saving), width)
        total = _top(gain, k)
        saving = min(saving, max(charge, known - whole + charge * (k + 1)) + total + slack)
    keep = edge <= total
    for _ in range(3):
        gain = _gains(w, closed[keep], covered.gaps(closed[keep], saving), width)
        keep[keep] = edge[keep] <= _top(gain, k - 1)
    return cell[closed[keep]]


def _best_through(w: Floats, x: Floats, best: Partition) -> tuple[Floats, float]:
    """Return the least charged cost with a cut at each edge ``[n + 1]``, and overall."""
    n = w.size
    back, queue = np.empty(n + 1, np.int32), np.empty((2, n + 1), np.int32)
    ahead, behind = np.empty(n + 1), np.empty(n + 1)
    charged(best.moments, n, best.charge, ahead, back, queue)
    w, x = w[::-1].copy(), -x[::-1]
    moments = merged_moments(w, x) if best.moments.ndim == 3 else sums_of(w, x)
    charged(moments, n, best.charge, behind, back, queue)
    return ahead + behind[::-1], float(ahead[n])


def _gains(w: Floats, closed: NDArray[Any], gaps: Floats, width: float) -> Floats:
    out: Floats = w[closed] * width * np.maximum(1.25 * width, 0.5 * gaps)
    return out


def _top(gain: Floats, count: int) -> float:
    if gain.size > count:
        gain = np.partition(gain, gain.size - count)[gain.size - count :]
    return float(gain.sum())


class _Coverage:
    """Widest gap between centroids that is possible around each cell."""

    def __init__(self, w: Floats, x: Floats, cell: Ints, width: float) -> None:
        self._cell, self._width = cell, width
        # An atom in an open cell lies at x; one in a closed cell within ``width`` of it.
        self._x = x
        self._below = np.concatenate([[0.0], np.cumsum(w)])

    def gaps(self, atoms: NDArray[Any], saving: float) -> Floats:
        """Return, for each atom, an upper bound of the gap given the most a centroid saves.

        Bisects for the least radius r at which what surely lies within r of any boundary in
        the cell weighs enough that a gap of 8 r would save more than ``saving``.
        """
        x, width = self._x[atoms], self._width
        low = np.full(atoms.size, 2.0 * width)
        high = np.full(atoms.size, 2.0 * (self._x[-1] - self._x[0]) + 4.0 * width)
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
        return 8.0 * high
