"""Best partitions of sorted atoms at a charge for each segment: compiled, for both forms of costs.

A concave least-weight-subsequence problem; see `search` for where it comes from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel
from palette_core.builtins.clusterers.kmeans1d.costs import cost

_BLUR = 1e-12  # of a cost: far more than rounding changes it by
# Helpers get 64-bit integers only, lest each is compiled once for every kind.
_wide: Any = np.int64
_plain: Any = np.uint64  # signed indices are looked at for being negative


@kernel
def charged(moments: Any, n: int, charge: float, total: Any, back: Any, queue: Any) -> int:
    """Minimise cost + charge · segments over all partitions of atoms 0 … n-1.

    Args:
        moments: see `cost`.
        n: number of atoms.
        charge: λ.
        total: ``[n + 1]`` out: best charged cost of the first j atoms.
        back: ``[n + 1]`` int32 out: where the last segment of that partition starts.
        queue: ``[2, n + 1]`` int32 scratch.

    Returns:
        The number of segments.
    """
    if moments.ndim == 2:
        _by_sums(moments.reshape(-1), n, charge, total, back, queue[0], queue[1])
    else:
        _by_merged(moments, n, charge, total, back, queue)
    segments = 0
    j = n
    while j > 0:
        j = back[j]
        segments += 1
    return segments


@inner_kernel
def _by_merged(moments: Any, n: int, charge: float, total: Any, back: Any, queue: Any) -> None:
    """Do what `charged` does, with costs that take long."""
    start, since = queue[0], queue[1]  # candidate starts, and the first j each is best for
    head, tail = 0, 0
    start[0], since[0] = 0, 1
    total[0] = 0.0
    guess = 1
    for j in range(1, n + 1):
        while head < tail and since[head + 1] <= j:
            head += 1
        i = _wide(start[head])
        total[j], back[j] = total[i] + cost(moments, n, i, j) + charge, i
        hi = n + 1  # from here on j beats the last candidate; n + 1 stands for never
        while tail > head and since[tail] > j:
            if not _beats(moments, n, total, _wide(start[tail]), j, _wide(since[tail])):
                break
            hi = _wide(since[tail])
            tail -= 1
        b = _wide(start[tail])
        lo = max(j, _wide(since[tail]))  # here it does not
        p, step = guess + 1, 1
        while hi - lo > 1:
            p = min(max(p, lo + 1), hi - 1)
            if _beats(moments, n, total, b, j, p):
                hi = p
                p -= step
            else:
                lo = p
                p += step
            step += step
            if step > 32:
                p = (lo + hi) // 2
        if hi <= n:
            tail += 1
            start[tail], since[tail] = j, hi
            guess = hi


@inner_kernel
def _beats(moments: Any, n: int, total: Any, b: int, j: int, p: int) -> bool:
    """Return whether a last segment from j is at least as good as one from b, for the first p."""
    return bool(total[j] + cost(moments, n, j, p) <= total[b] + cost(moments, n, b, p))


@inner_kernel
def _cost_of(sums: Any, i: Any, j: int, w: float, s: float, q: float) -> float:
    """Return the cost of atoms i … j-1, given the running sums of the first j; see `cost`."""
    at = i * _plain(3)
    if j == _wide(i) + 1:
        return 0.0
    w, s = w - sums[at], s - sums[at + _plain(1)]
    return max(float((q - sums[at + _plain(2)]) - s * s / w), 0.0)


@inner_kernel
def _takes_over(
    sums: Any, p: int, b: Any, theirs: float, j: int, mine: float, w: float, s: float, q: float,
    blur: float,
) -> bool:  # fmt: skip
    """Return what `_beats` does, mostly without a division, which takes long.

    That is where the difference, times both weights, is more than what rounding can have made.

    Args:
        sums: running sums in a row.
        p: see `_beats`.
        b: see `_beats`.
        theirs: ``total[b]``.
        j: see `_beats`.
        mine: ``total[j]``.
        w: the first of the three sums of the first j atoms.
        s: the second.
        q: the third.
        blur: more than the rounding error of a charged cost.
    """
    end, at = _plain(p) * _plain(3), b * _plain(3)
    pw, ps, pq = sums[end], sums[end + _plain(1)], sums[end + _plain(2)]
    its_w, its_s = pw - w, ps - s
    all_w, all_s = pw - sums[at], ps - sums[at + _plain(1)]
    both = all_w * its_w
    gap = (theirs - sums[at + _plain(2)]) - (mine - q)
    gap = gap * both - (all_s * all_s * its_w - its_s * its_s * all_w)
    if abs(gap) > blur * both > 0.0:
        return bool(gap > 0.0)
    return bool(
        mine + _cost_of(sums, _plain(j), p, pw, ps, pq) <= theirs + _cost_of(sums, b, p, pw, ps, pq)
    )


@inner_kernel
def _by_sums(
    sums: Any, n: int, charge: float, total: Any, back: Any, start: Any, since: Any
) -> None:
    """Do what `_by_merged` does, with running sums in a row."""
    one, two, three = _plain(1), _plain(2), _plain(3)
    head = tail = _plain(0)
    start[head], since[head], total[head] = 0, 1, 0.0
    far = _BLUR * (abs(sums[two]) + abs(sums[_plain(n) * three + two]))
    guess = 1
    for j in range(1, n + 1):
        while head < tail and since[head + one] <= j:
            head += one
        i, at = _plain(start[head]), _plain(j) * three
        w, s, q = sums[at], sums[at + one], sums[at + two]
        mine = total[i] + _cost_of(sums, i, j, w, s, q) + charge
        total[_plain(j)], back[_plain(j)] = mine, i
        blur = far + _BLUR * mine
        hi = n + 1  # from here on j beats the last candidate; n + 1 stands for never
        b, lo = _plain(start[tail]), _wide(since[tail])
        while tail > head and lo > j:
            if not _takes_over(sums, lo, b, total[b], j, mine, w, s, q, blur):
                break
            hi = lo
            tail -= one
            b, lo = _plain(start[tail]), _wide(since[tail])
        lo = max(j, lo)  # here it does not
        p, step = guess + 1, 1
        theirs = total[b]
        while hi - lo > 1:
            p = min(max(p, lo + 1), hi - 1)
            if _takes_over(sums, p, b, theirs, j, mine, w, s, q, blur):
                hi = p
                p -= step
            else:
                lo = p
                p += step
            step += step
            if step > 32:
                p = (lo + hi) // 2
        if hi <= n:
            tail += one
            start[tail], since[tail] = j, hi
            guess = hi
