"""Exact weighted k-means of sorted atoms on the line, at a cost that does not grow with K.

Segment costs on the line are concave Monge, hence the best cost ``f(k)`` of k segments is convex
in k. So the K-segment problem is solved by charging λ per segment and searching λ: each trial
is a concave least-weight-subsequence problem, solved front to back with a queue of candidate
starts (Hirschberg and Larmore 1987, Galil and Giancarlo 1989; for k-means see Grønlund et al.
2017, "Fast Exact k-Means, k-Medians and Bregman Divergence Clustering in 1D", section 4). Where
f is straight around K no λ gives K segments alone; then two solutions with fewer and with more
segments are crossed over to one with K (Aggarwal, Schieber and Tokuyama 1994).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palette_core.clustering._scalar_costs import (
    charged,
    merged_moments,
    path_cost,
    rounding_error,
    running_sums,
    thin,
    trace,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

_SHARP = 3e-10  # relative error of the cost above which the merged form is used
_COARSE = 1024  # more atoms than this: find λ on fewer, merged ones first
_MERGE = 4
_DROWNED = 1e-4
_LIGHT = 1e-13  # share of the total weight below which an atom is lost in running sums


@dataclass(frozen=True)
class Partition:
    """The best cut of n atoms into segments.

    Attributes:
        cuts: ``[min(K, n) + 1]`` int32, from 0 to n.
        charge: a λ at which no number of segments is cheaper; 0 when n ≤ K.
        moments: the form of costs the search used.
    """

    cuts: Ints
    charge: float
    moments: NDArray[Any]


def solve_atoms(w: Floats, x: Floats, k: int, hint: float = 0.0) -> Partition:
    """Cut ascending atoms into k segments at the least weighted sum of squares.

    Args:
        w: ``[n]`` positive weights.
        x: ``[n]`` strictly ascending values; centre them beforehand.
        k: number of segments, at least 1.
        hint: a first guess of λ, or 0.
    """
    n = w.size
    if n <= k:
        return Partition(np.arange(n + 1, dtype=np.int32), 0.0, running_sums(w, x))
    if hint <= 0.0:
        hint = _coarse_charge(w, x, k)
    sums = running_sums(w, x)
    if w.min() > _LIGHT * w.sum():
        cuts, charge = _search(sums, n, k, hint)
        error, cost = rounding_error(sums, w, x, cuts)
        if error <= _SHARP * cost:
            return Partition(cuts, charge, sums)
    merged = merged_moments(w, x)
    cuts, charge = _search(merged, n, k, hint)
    return Partition(cuts, charge, merged)


def _coarse_charge(w: Floats, x: Floats, k: int) -> float:
    """Return λ of the same problem on merged atoms, or 0 where that is not worth it."""
    if w.size <= max(_COARSE, 4 * k * _MERGE):
        return 0.0
    w, x = thin(w, x, _MERGE)
    return _search(running_sums(w, x), w.size, k, _coarse_charge(w, x, k))[1]


class _Trials:
    """Runs charged searches over the same moments, with shared scratch memory."""

    def __init__(self, moments: NDArray[Any], n: int) -> None:
        self.moments = moments
        self.n = n
        self._total = np.empty(n + 1)
        self._back = np.empty(n + 1, np.int32)
        self._queue = np.empty((2, n + 1), np.int32)

    def run(self, charge: float) -> tuple[Ints, float, float]:
        """Return cuts, uncharged cost and λ of the best partition at ``charge``.

        A λ far above the cost drowns it in rounding; as the same number of segments is best at
        a λ of twice the cost too, that λ takes over.
        """
        while True:
            got = charged(self.moments, self.n, charge, self._total, self._back, self._queue)
            cuts = trace(self._back, self.n, got)
            cost = float(path_cost(self.moments, cuts))
            if not 0.0 < cost < _DROWNED * charge:
                return cuts, cost, charge
            charge = 2.0 * cost


def _search(moments: NDArray[Any], n: int, k: int, first: float) -> tuple[Ints, float]:
    """Return the K + 1 cuts of the best partition, and a λ that supports it; needs n > k."""
    trials = _Trials(moments, n)
    few = np.array([0, n], np.int32)
    few_cost = float(path_cost(moments, few))
    if k <= 1:
        return few, few_cost
    many, many_cost = np.arange(n + 1, dtype=np.int32), 0.0
    low, high = 0.0, math.inf  # λ that gave `many` and `few`, or beyond any that does
    chord = few_cost / (n - 1)
    charge = first if first > 0.0 else 5.0 * few_cost / float(k) ** 3
    for turns in itertools.count():
        if not charge > 0.0:
            break
        cuts, cost, lowered = trials.run(charge)
        got = cuts.size - 1
        if got == k:
            return cuts, lowered
        inside = few.size - 1 < got < many.size - 1
        if charge == chord and not inside:
            break  # the chord between both touches f all along: K lies on it
        if got < k:
            high = lowered
            if inside:
                few, few_cost = cuts, cost
        else:
            low = charge
            if inside:
                many, many_cost = cuts, cost
        less, more = few.size - 1, many.size - 1
        chord = (few_cost - many_cost) / (more - less)
        charge = _next_charge(k, got, charge, (low, high), (more, less), far=turns > 1)
        if not inside or more - less <= 4 or not low < charge < high:
            charge = chord
    cuts = _cross(few, many, k)
    cost = float(path_cost(moments, cuts))
    if 0.0 < cost < _DROWNED * few_cost:  # rounding in the costly one may have led astray
        again, its_cost, lowered = trials.run(2.0 * cost)
        if again.size == k + 1 and its_cost < cost:
            return again, lowered
    return cuts, charge


def _next_charge(
    k: int,
    got: int,
    charge: float,
    bracket: tuple[float, float],
    counts: tuple[int, int],
    *,
    far: bool,
) -> float:
    """Guess λ for k segments: it falls about as k^-3.

    Args:
        k: segments wanted.
        got: segments at ``charge``.
        charge: the λ tried last.
        bracket: λ with too many and with too few segments, 0 and infinity while unknown.
        counts: how many segments those gave.
        far: several guesses fell on the same side; go further than the law says.
    """
    (low, high), (more, less) = bracket, counts
    if low <= 0.0 or math.isinf(high):
        more_so = 1.0 if not far else 1.5 if got > k else 1.0 / 1.5
        return charge * (got / k) ** 3 * more_so
    t = math.log(k / more) / math.log(less / more)
    t = min(max(t, 0.1), 0.9)
    return math.exp(math.log(low) + t * (math.log(high) - math.log(low)))


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
