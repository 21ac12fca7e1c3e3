"""Exact weighted k-means of sorted atoms on the line: the compiled search for λ.

Segment costs on the line are concave Monge, hence the best cost ``f(k)`` of k segments is convex
in k. So the K-segment problem is solved by charging λ per segment and searching λ: each trial
is a concave least-weight-subsequence problem, solved front to back with a queue of candidate
starts (Hirschberg and Larmore 1987, Galil and Giancarlo 1989; for k-means see Grønlund et al.
2017, "Fast Exact k-Means, k-Medians and Bregman Divergence Clustering in 1D", section 4). Where
f is straight around K no λ gives K segments alone; then two solutions with fewer and with more
segments are crossed over to one with K (Aggarwal, Schieber and Tokuyama 1994).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palette_core._common.kernels import inlined, kernel
from palette_core.builtins.clusterers.kmeans1d.charging import charged
from palette_core.builtins.clusterers.kmeans1d.costs import path_cost, trace

COARSE = 1024  # more atoms than this: find λ on fewer, merged ones first
MERGE = 4
DROWNED = 1e-4


@kernel
def search(  # noqa: PLR0912
    moments: Any, n: int, k: int, first: float, total: Any, back: Any, queue: Any, cuts: Any
) -> Any:
    """Look for the λ at which k segments of n atoms are best, 1 < k < n.

    Args:
        moments: see `cost`.
        n: number of atoms.
        k: number of segments.
        first: a guess of λ, or 0.
        total: see `charged`; scratch.
        back: see `charged`; scratch.
        queue: see `charged`; scratch.
        cuts: ``[3, n + 1]`` int32 out: of the best partitions found with fewer and with more
            segments, and of the last one tried.

    Returns:
        λ; the number of segments of the last partition, k unless there is no such λ; how many
        the first has; and the cost of that one.
    """
    less, more, got = 1, n, 1
    cuts[0, 0], cuts[0, 1] = 0, n
    few_cost, many_cost = path_cost(moments, n, cuts[0], np.int64(1)), 0.0
    for i in range(n + 1):
        cuts[1, i] = i
    low, high = 0.0, np.inf  # λ that gave too many and too few, or beyond any that does
    chord = few_cost / (n - 1)
    charge = first if first > 0.0 else 5.0 * few_cost / float(k) ** 3
    turns = 0
    while charge > 0.0:
        got, its_cost, lowered = tried(moments, n, charge, total, back, queue, cuts[2])
        if got == k:
            return lowered, got, less, few_cost
        inside = less < got < more
        if charge == chord and not inside:
            break  # the chord between both touches the best costs all along: K lies on it
        row = 0
        if got < k:
            high = lowered
        else:
            low = charge
            row = 1
        if inside:
            for i in range(got + 1):
                cuts[row, i] = cuts[2, i]
            if got < k:
                less, few_cost = got, its_cost
            else:
                more, many_cost = got, its_cost
        chord = (few_cost - many_cost) / (more - less)
        if low <= 0.0 or high == np.inf:
            charge *= (got / k) ** 3  # λ for k segments falls about as k^-3
            if turns > 1:  # several guesses fell on the same side: go further than that
                charge *= 1.5 if got > k else 1.0 / 1.5
        else:
            t = math.log(k / more) / math.log(less / more)
            t = min(max(t, 0.1), 0.9)
            charge = math.exp(math.log(low) + t * (math.log(high) - math.log(low)))
        turns += 1
        if not inside or more - less <= 4 or not low < charge < high:
            charge = chord
    return charge, got, less, few_cost


@inlined
def tried(moments: Any, n: int, charge: float, total: Any, back: Any, queue: Any, cuts: Any) -> Any:
    """Find the best partition at a λ; write its cuts.

    A λ far above the cost drowns it in rounding; as the same number of segments is best at
    a λ of twice the cost too, that λ takes over.

    Returns:
        the number of segments, their uncharged cost, and λ.
    """
    while True:
        segments = charged(moments, n, charge, total, back, queue)
        trace(back, n, segments, cuts)
        its_cost = path_cost(moments, n, cuts, segments)
        if not 0.0 < its_cost < DROWNED * charge:
            return segments, its_cost, charge
        charge = 2.0 * its_cost
