"""Blocks of a few dozen float32 points, very many at a time: one compiled function.

A plain dynamic programme over the sorted distinct values (Wang and Song 2011, "Ckmeans.1d.dp");
with so few it takes microseconds, less than one call from the interpreter. A few such blocks are
done by the same steps in numpy, before the function would be compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from palette_core._common.kernels import inner_kernel, is_compiled, kernel
from palette_core.builtins.clusterers.kmeans1d.costs import mean_of, segment_means
from palette_core.builtins.clusterers.kmeans1d.sorted_fit import spread, thresholds

FEW = 64  # points of a block, at most
_MANY = 2048  # blocks that take as long one by one as compiling what does them all
_STRETCH = 1 << 13  # blocks that are sorted together

Floats = NDArray[np.float64]


def fit_few(
    x: NDArray[np.float32], w: NDArray[np.float32], lut: NDArray[Any], codes: NDArray[Any]
) -> None:
    """Cluster blocks.

    Args:
        x: ``[B, N]`` float32 points, N at most `FEW`.
        w: ``[B, N]`` float32 weights, ``[B, 0]`` for ones. Without any, all points count alike.
        lut: ``[B, K]`` float32 out.
        codes: ``[B, N]`` uint8 out.
    """
    blocks = x.shape[0]
    if blocks < _MANY and not is_compiled(_fit_sorted):
        for b in range(blocks):
            _fit_one(x[b], w[b], lut[b], codes[b])
        return
    for at in range(0, blocks, _STRETCH):
        part = slice(at, at + _STRETCH)
        order = np.argsort(x[part], axis=1, kind="stable")
        _fit_sorted(x[part], w[part], order, lut[part], codes[part])


def _fit_one(
    x: NDArray[np.float32], w: NDArray[np.float32], lut: NDArray[Any], codes: NDArray[Any]
) -> None:
    """Cluster one block as `_fit_sorted` does, to the last bit."""
    order = np.argsort(x, kind="stable")
    value: Floats = x[order].astype(np.float64)
    weight: Floats = np.ones(x.size)
    if w.any():
        weight = w[order].astype(np.float64)
        value, weight = value[weight > 0.0], weight[weight > 0.0]
    fresh = np.append(True, value[1:] != value[:-1])
    value, weight = value[fresh], np.bincount(np.cumsum(fresh) - 1, weight).astype(np.float64)
    k = min(lut.size, value.size)
    cuts = np.arange(k + 1, dtype=np.int32)
    if value.size > k:
        cuts[1:] = _ends(value, weight, k)
    lut[:] = spread(segment_means(weight, value, cuts), lut.size)
    codes[:] = np.searchsorted(thresholds(lut.astype(np.float64)), x, side="left")


def _ends(x: Floats, w: Floats, k: int) -> list[int]:
    """Return the ends of the best k segments of more than k atoms."""
    n = x.size
    costs = np.full((n, n), np.inf)  # of a segment, by its last atom and its first
    mass, mean, cost = np.zeros(n), np.zeros(n), np.zeros(n)
    for j in range(n):
        some = slice(j + 1)
        gap = x[j] - mean[some]
        before = mass[some].copy()
        mass[some] += w[j]
        share = w[j] / mass[some]
        mean[some] += gap * share
        # Not by the distance from the new mean: a light point far away would leave none.
        cost[some] += gap * gap * before * share
        costs[j, some] = cost[some]
    least: Floats = costs[:, 0]
    starts: list[NDArray[np.int64]] = []
    for _ in range(1, k):
        found = costs + np.append(np.inf, least[:-1])
        first = n - 1 - found[:, ::-1].argmin(axis=1)  # the last of those equally good
        least = found[np.arange(n), first]
        starts.append(first)
    ends = [n]
    for first in reversed(starts):
        ends.append(int(first[ends[-1] - 1]))
    return ends[::-1]


@kernel
def _fit_sorted(x: Any, w: Any, orders: Any, lut: Any, codes: Any) -> None:
    """Cluster blocks, given the order of each one's points."""
    count, k = x.shape[1], lut.shape[1]
    values, weights = np.empty(count), np.empty(count)
    costs, least = np.empty((count, count)), np.empty((k, count))
    starts, cuts = np.empty((k, count), np.int64), np.empty(k + 1, np.int64)
    for b in range(x.shape[0]):
        order = orders[b]
        n = _atoms(x[b], w[b], order, values, weights)
        used = min(k, n)
        if n <= k:
            for i in range(n + 1):
                cuts[i] = i
        else:
            _partition(values[:n], weights[:n], costs, least, starts, cuts)
        for i in range(used):
            first, last = cuts[i], cuts[i + 1]
            mean = mean_of(weights, values, first, last)
            lut[b, i] = np.float32(min(max(mean, values[first]), values[last - 1]))
        for i in range(used, k):
            lut[b, i] = lut[b, used - 1]
        code = 0
        for at in order:
            while code + 1 < k and lut[b, code + 1] > lut[b, code]:
                middle = 0.5 * np.float64(lut[b, code]) + 0.5 * np.float64(lut[b, code + 1])
                if np.float64(x[b, at]) <= middle:
                    break
                code += 1
            codes[b, at] = code


@inner_kernel
def _atoms(x: Any, w: Any, order: Any, values: Any, weights: Any) -> Any:
    """Write the ascending distinct values that count, and their weights; return how many."""
    whole = 0.0
    for i in range(w.size):
        whole += w[i]
    n = 0
    for at in order:
        weight = np.float64(w[at]) if whole > 0.0 else 1.0
        if weight <= 0.0:
            continue
        if n and values[n - 1] == x[at]:
            weights[n - 1] += weight
        else:
            values[n], weights[n] = x[at], weight
            n += 1
    return n


@inner_kernel
def _partition(x: Any, w: Any, costs: Any, least: Any, starts: Any, cuts: Any) -> None:
    """Write the ends of the best segments, as many as there are rows of ``least``."""
    n, k = x.size, least.shape[0]
    for i in range(n):
        mass = mean = cost = 0.0
        for j in range(i, n):
            gap = x[j] - mean
            before = mass
            mass += w[j]
            share = w[j] / mass
            mean += gap * share
            cost += gap * gap * before * share  # as in `_ends`
            costs[i, j] = cost
    for j in range(n):
        least[0, j], starts[0, j] = costs[0, j], 0
    for m in range(1, k):
        for j in range(m, n):
            best, first = np.inf, j
            for i in range(j, m - 1, -1):
                if costs[i, j] >= best:
                    break  # they only grow
                found = least[m - 1, i - 1] + costs[i, j]
                if found < best:
                    best, first = found, i
            least[m, j], starts[m, j] = best, first
    last = n
    for m in range(k - 1, -1, -1):
        cuts[m + 1] = last
        last = starts[m, last - 1]
    cuts[0] = 0
