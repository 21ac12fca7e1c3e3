"""Costs of segments of sorted atoms: numba kernels shared by the scalar solvers.

An *atom* is a value with a weight; a segment is a run of neighbouring atoms, and its cost the
weighted sum of squares about its own mean. Two forms answer "cost of atoms i … j-1" in O(1):

* ``sums`` ``[n + 1, 3]``: running Σw, Σwx, Σwx², started at the atom nearest zero and going
  outwards, so that what lies far out does not blur what lies inside. Fast; loses digits when
  several tight groups lie far apart.
* ``merged``: moments of runs of atoms, put together without any subtraction of large numbers
  (pairwise update of Chan, Golub and LeVeque 1983). Slower; good to some 1e-15 whatever the data.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palette_core._common.kernels import inlined, inner_kernel, kernel, short_kernel

SHARP = 3e-10  # relative error of a cost above which the merged form is used
LIGHT = 1e-13  # share of the total weight below which an atom is lost in running sums
_RUN = 16  # atoms per run of the merged form
# Helpers get 64-bit integers only, lest each is compiled once for every kind.
_wide: Any = np.int64


@short_kernel
def running_sums(w: Any, x: Any, sums: Any) -> None:
    """Write the running sums of n ascending atoms, anchored at the value nearest 0, to ``sums``."""
    n = w.size
    anchor = 0
    while anchor < n and x[anchor] < 0.0:
        anchor += 1
    # In locals: to read back what was just written takes longer than to add.
    a, s, q = 0.0, 0.0, 0.0
    sums[anchor, 0], sums[anchor, 1], sums[anchor, 2] = a, s, q
    for i in range(anchor, n):
        wx = w[i] * x[i]
        a, s, q = a + w[i], s + wx, q + wx * x[i]
        sums[i + 1, 0], sums[i + 1, 1], sums[i + 1, 2] = a, s, q
    a, s, q = 0.0, 0.0, 0.0
    for i in range(anchor - 1, -1, -1):
        wx = w[i] * x[i]
        a, s, q = a - w[i], s - wx, q - wx * x[i]
        sums[i, 0], sums[i, 1], sums[i, 2] = a, s, q


@inner_kernel
def _join(w1: float, m1: float, q1: float, w2: float, m2: float, q2: float) -> Any:
    w = w1 + w2
    if w1 == 0.0:
        return w2, m2, q2
    if w2 == 0.0:
        return w1, m1, q1
    share = w2 / w
    gap = m2 - m1
    return w, m1 + gap * share, q1 + q2 + gap * gap * w1 * share


@kernel
def merged_moments(w: Any, x: Any) -> Any:
    """Return moments (weight, mean, squares) of runs of atoms, for `segment`.

    Layer 0 holds prefixes within each run, layer 1 suffixes, layer 2 the atoms themselves, and
    layer 3, level after level, a disjoint sparse table over whole runs.
    """
    n = w.size
    runs = (n + _RUN - 1) // _RUN
    levels = 0
    while (1 << levels) < runs:
        levels += 1
    out = np.zeros((4, max(n, levels * runs), 3))
    for run in range(runs):
        first, last = run * _RUN, min(n, (run + 1) * _RUN)
        a, m, q = 0.0, 0.0, 0.0
        for i in range(first, last):
            a, m, q = _join(a, m, q, w[i], x[i], 0.0)
            out[0, i, 0], out[0, i, 1], out[0, i, 2] = a, m, q
            out[2, i, 0], out[2, i, 1] = w[i], x[i]
        a, m, q = 0.0, 0.0, 0.0
        for i in range(last - 1, first - 1, -1):
            a, m, q = _join(w[i], x[i], 0.0, a, m, q)
            out[1, i, 0], out[1, i, 1], out[1, i, 2] = a, m, q
    for level in range(levels):
        half = 1 << level
        table = out[3, level * runs : (level + 1) * runs]
        for middle in range(half, runs, 2 * half):
            a, m, q = 0.0, 0.0, 0.0
            for run in range(middle, min(runs, middle + half)):
                end = min(n, (run + 1) * _RUN) - 1
                a, m, q = _join(a, m, q, out[0, end, 0], out[0, end, 1], out[0, end, 2])
                table[run, 0], table[run, 1], table[run, 2] = a, m, q
            a, m, q = 0.0, 0.0, 0.0
            for run in range(middle - 1, middle - half - 1, -1):
                at = run * _RUN
                a, m, q = _join(out[1, at, 0], out[1, at, 1], out[1, at, 2], a, m, q)
                table[run, 0], table[run, 1], table[run, 2] = a, m, q
    return out


@inner_kernel
def segment(merged: Any, n: int, i: int, j: int) -> Any:
    """Return weight, mean and cost of atoms i … j-1 (i < j) out of n, from `merged_moments`."""
    first, last = i // _RUN, (j - 1) // _RUN
    a, m, q = 0.0, 0.0, 0.0
    if first == last:
        for t in range(i, j):
            a, m, q = _join(a, m, q, merged[2, t, 0], merged[2, t, 1], 0.0)
        return a, m, q
    a, m, q = merged[1, i, 0], merged[1, i, 1], merged[1, i, 2]
    left, right = first + 1, last - 1
    if left == right:
        t = right * _RUN + _RUN - 1
        a, m, q = _join(a, m, q, merged[0, t, 0], merged[0, t, 1], merged[0, t, 2])
    elif left < right:
        level = 0
        while ((left ^ right) >> (level + 1)) > 0:
            level += 1
        at = level * ((n + _RUN - 1) // _RUN)
        r, t = at + left, at + right
        a, m, q = _join(a, m, q, merged[3, r, 0], merged[3, r, 1], merged[3, r, 2])
        a, m, q = _join(a, m, q, merged[3, t, 0], merged[3, t, 1], merged[3, t, 2])
    t = j - 1
    return _join(a, m, q, merged[0, t, 0], merged[0, t, 1], merged[0, t, 2])


@inner_kernel
def cost(moments: Any, n: int, i: int, j: int) -> float:
    """Return the cost of atoms i … j-1 out of n, i < j, from either form (by its rank)."""
    if j == i + 1:
        return 0.0
    if moments.ndim == 3:
        return float(segment(moments, n, i, j)[2])
    w = moments[j, 0] - moments[i, 0]
    s = moments[j, 1] - moments[i, 1]
    c = (moments[j, 2] - moments[i, 2]) - s * s / w
    return max(float(c), 0.0)


@inlined
def trace(back: Any, n: int, segments: int, cuts: Any) -> None:
    """Follow ``back`` from n; write the ``segments + 1`` cuts in ascending order."""
    j = n
    for k in range(segments, 0, -1):
        cuts[k] = j
        j = _wide(back[j])
    cuts[0] = 0


@kernel
def path_cost(moments: Any, n: int, cuts: Any, segments: int) -> float:
    """Return the summed cost of the segments between neighbouring ``cuts`` of n atoms."""
    out = 0.0
    for k in range(segments):
        out += cost(moments, n, _wide(cuts[k]), _wide(cuts[k + 1]))
    return out


@inlined
def mean_of(w: Any, x: Any, i: int, j: int) -> float:
    """Return the weighted mean of atoms i … j-1, taken about one of them."""
    middle = x[(i + j) // 2]
    a, s = 0.0, 0.0
    for t in range(i, j):
        a += w[t]
        s += w[t] * (x[t] - middle)
    return float(middle + s / a)


@short_kernel
def segment_means(w: Any, x: Any, cuts: Any) -> Any:
    """Return the weighted mean of each segment, kept inside its hull."""
    out = np.empty(cuts.size - 1)
    for k in range(out.size):
        mean = mean_of(w, x, _wide(cuts[k]), _wide(cuts[k + 1]))
        out[k] = min(max(mean, x[cuts[k]]), x[cuts[k + 1] - 1])
    return out


@short_kernel
def rounding_error(sums: Any, w: Any, x: Any, cuts: Any) -> Any:
    """Estimate the rounding error of `path_cost` with running sums; also do the cost with care.

    The errors of single segments are bounded, and taken to be independent.
    """
    error, care = 0.0, 0.0
    for k in range(cuts.size - 1):
        i, j = _wide(cuts[k]), _wide(cuts[k + 1])
        if j == i + 1:
            continue
        mean = mean_of(w, x, i, j)
        for t in range(i, j):
            care += w[t] * (x[t] - mean) * (x[t] - mean)
        for end in range(i, j + 1, j - i):
            one = abs(sums[end, 2]) + 2.0 * abs(mean * sums[end, 1])
            one += mean * mean * abs(sums[end, 0])
            error += one * one
    return 1.2e-16 * math.sqrt(error), care


@short_kernel
def thin(w: Any, x: Any, merge: int, out_w: Any, out_x: Any) -> None:
    """Merge each ``merge`` neighbouring atoms into one at their mean."""
    for i in range(out_w.size):
        first, last = i * merge, min(w.size, (i + 1) * merge)
        total = 0.0
        for t in range(first, last):
            total += w[t]
        out_w[i], out_x[i] = total, mean_of(w, x, first, last)
