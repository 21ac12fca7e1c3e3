"""Blocks of a few dozen float32 points, very many at a time: one compiled function.

A plain dynamic programme over the sorted distinct values (Wang and Song 2011, "Ckmeans.1d.dp");
with so few it takes microseconds, less than one call from the interpreter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel
from palette_core.builtins.clusterers.kmeans1d.costs import mean_of

FEW = 64  # points of a block, at most


@kernel
def fit_few(x: Any, w: Any, lut: Any, codes: Any) -> None:
    """Cluster blocks.

    Args:
        x: ``[B, N]`` float32 points, N at most `FEW`.
        w: ``[B, N]`` float32 weights, ``[B, 0]`` for ones. Without any, all points count alike.
        lut: ``[B, K]`` float32 out.
        codes: ``[B, N]`` uint8 out.
    """
    count, k = x.shape[1], lut.shape[1]
    values, weights = np.empty(count), np.empty(count)
    costs, least = np.empty((count, count)), np.empty((k, count))
    starts, cuts = np.empty((k, count), np.int64), np.empty(k + 1, np.int64)
    for b in range(x.shape[0]):
        order = np.argsort(x[b], kind="mergesort")
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
            mass += w[j]
            mean += gap * w[j] / mass
            cost += w[j] * gap * (x[j] - mean)
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
