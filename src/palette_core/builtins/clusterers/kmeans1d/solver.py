"""Exact weighted k-means of sorted atoms on the line, at a cost that does not grow with K.

Costs of segments come from running sums; where these are too blurred, from moments put together
with more care. See `search` for the search and `costs` for both forms of costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palette_core.builtins.clusterers.kmeans1d.charging import charged
from palette_core.builtins.clusterers.kmeans1d.costs import (
    LIGHT,
    SHARP,
    merged_moments,
    path_cost,
    rounding_error,
    running_sums,
    thin,
)
from palette_core.builtins.clusterers.kmeans1d.search import COARSE, DROWNED, MERGE, search, tried

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Partition:
    """The best cut of n atoms into segments.

    Attributes:
        cuts: ``[min(K, n) + 1]`` int32, from 0 to n.
        charge: a λ at which no number of segments is cheaper; 0 when n ≤ K.
        moments: the form of costs the search used.
        ahead: ``[n + 1]`` the best charged cost of the first j atoms, where the search left it.
    """

    cuts: Ints
    charge: float
    moments: NDArray[Any]
    ahead: Floats | None = None


def solve_atoms(
    w: Floats, x: Floats, k: int, hint: float = 0.0, *, centred: bool = False
) -> Partition:
    """Cut ascending atoms into k segments at the least weighted sum of squares.

    Args:
        w: ``[n]`` positive weights.
        x: ``[n]`` strictly ascending values; centre them beforehand.
        k: number of segments, at least 1.
        hint: a first guess of λ, or 0.
        centred: where there is none, look for one with more care: worth it for many atoms.
    """
    n = w.size
    if n <= k:
        return Partition(np.arange(n + 1, dtype=np.int32), 0.0, sums_of(w, x))
    if hint <= 0.0:
        hint = _coarse_charge(w, x, k, centred=centred)
    sums = sums_of(w, x)
    if w.min() > LIGHT * w.sum():
        cuts, charge, ahead = _search(sums, n, k, hint)
        error, cost = rounding_error(sums, w, x, cuts)
        if error <= SHARP * cost:
            return Partition(cuts, charge, sums, ahead)
    merged = merged_moments(w, x)
    cuts, charge, ahead = _search(merged, n, k, hint)
    return Partition(cuts, charge, merged, ahead)


def _coarse_charge(w: Floats, x: Floats, k: int, *, centred: bool = False) -> float:
    """Return λ of the same problem on merged atoms, or 0 where that is not worth it."""
    if w.size <= max(COARSE, 4 * k * MERGE):
        return 0.0
    n = (w.size + MERGE - 1) // MERGE
    few_w, few_x = np.empty(n), np.empty(n)
    thin(w, x, MERGE, few_w, few_x)
    sums = sums_of(few_w, few_x)
    charge = _search(sums, n, k, _coarse_charge(few_w, few_x, k))[1]
    return _centred(sums, n, k, charge) if centred else charge


def _centred(sums: Floats, n: int, k: int, charge: float) -> float:
    """Return a λ for k segments that is not at the edge of those that are.

    The largest is about 1 + 3 / k times the least.
    """
    total, back, queue = np.empty(n + 1), np.empty(n + 1, np.int32), np.empty((2, n + 1), np.int32)
    more, less = (
        charged(sums, n, charge * factor, total, back, queue) == k
        for factor in (1.0 + 1.0 / k, 1.0 - 1.0 / k)
    )
    return charge * (1.0 + (int(more) - int(less)) / k)


def _search(
    moments: NDArray[Any], n: int, k: int, first: float
) -> tuple[Ints, float, Floats | None]:
    """Return `Partition`'s cuts, a λ that supports them, and costs ahead; needs n > k."""
    if k == 1:
        cuts = np.array([0, n], np.int32)
        return cuts, float(path_cost(moments, n, cuts, 1)), None
    total, back = np.empty(n + 1), np.empty(n + 1, np.int32)
    queue, cuts = np.empty((2, n + 1), np.int32), np.empty((3, n + 1), np.int32)
    charge, got, less, few_cost = search(moments, n, k, first, total, back, queue, cuts)
    if got == k:
        return cuts[2, : k + 1].copy(), charge, total
    crossed = _cross(cuts[0, : less + 1], cuts[1], k)
    cost = float(path_cost(moments, n, crossed, k))
    if 0.0 < cost < DROWNED * few_cost:  # rounding in the costly one may have led astray
        got, its_cost, lowered = tried(moments, n, 2.0 * cost, total, back, queue, cuts[2])
        if got == k and its_cost < cost:
            return cuts[2, : k + 1].copy(), lowered, total
    return crossed, charge, None


def _cross(few: Ints, many: Ints, k: int) -> Ints:
    """Cross two partitions, with fewer and with more than k segments, over to one with k.

    Where a segment of ``many`` lies inside the one of ``few`` that is k - len(few) places
    before it, the front of the one joins the rest of the other; by the Monge property the sum
    of both crossings costs no more than the two did.
    """
    shift = k - (few.size - 1)
    places = np.arange(few.size - 1)
    p = int(np.argmax(many[places + shift + 1] <= few[places + 1]))
    return np.concatenate([many[: p + shift + 1], few[p + 1 :]])


def sums_of(w: Floats, x: Floats) -> Floats:
    """Return the running sums of ascending atoms, ``[n + 1, 3]``; see `costs`."""
    sums = np.empty((w.size + 1, 3))
    running_sums(w, x, sums)
    return sums
