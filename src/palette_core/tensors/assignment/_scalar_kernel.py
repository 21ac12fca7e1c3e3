"""Costs of tables of scalars, from points that are sorted once: compiled, table by table."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel

STRIDE = 32  # sorted points summed up together


@kernel
def sum_strides(x: Any, w: Any, out: Any) -> None:
    """Write mass, mean and scatter of every stride of sorted points.

    Args:
        x: ``[B, N]`` ascending.
        w: ``[B, N]`` weights, or ``[B, 0]`` for ones.
        out: ``[B, ceil(N / STRIDE), 3]`` float64: Σ w, Σ w x / Σ w, Σ w (x − mean)².
    """
    for b in range(x.shape[0]):
        for s in range(out.shape[1]):
            first, last = s * STRIDE, min(x.shape[1], (s + 1) * STRIDE)
            mass, moment, scatter = 0.0, 0.0, 0.0
            for i in range(first, last):
                weight = np.float64(w[b, i]) if w.shape[1] else 1.0
                mass += weight
                moment += weight * x[b, i]
            mean = moment / mass if mass > 0.0 else np.float64(x[b, first])
            for i in range(first, last):
                weight = np.float64(w[b, i]) if w.shape[1] else 1.0
                scatter += weight * (x[b, i] - mean) ** 2
            out[b, s, 0], out[b, s, 1], out[b, s, 2] = mass, mean, scatter


@kernel
def weigh_tables(
    x: Any, w: Any, strides: Any, blocks: Any, entries: Any, sums: Any, mass: Any, cost: Any
) -> None:
    """Give every point its nearest entry, and add up; of equal entries the first has all points.

    Args:
        x: ``[B, N]`` ascending.
        w: ``[B, N]`` weights, or ``[B, 0]`` for ones.
        strides: of `sum_strides`.
        blocks: ``[b]`` int64, which blocks the tables are of.
        entries: ``[b, K]`` float64.
        sums: ``[b, K]`` float64, overwritten by Σ w x.
        mass: ``[b, K]`` float64, overwritten by Σ w.
        cost: ``[b]`` float64, overwritten by Σ w (x − c)².
    """
    count = entries.shape[1]
    for at in range(blocks.size):
        row = blocks[at]
        order = np.argsort(entries[at], kind="mergesort")
        total, begin, k = 0.0, 0, 0
        while k < count:
            entry = entries[at, order[k]]
            after = k + 1
            while after < count and entries[at, order[after]] == entry:
                sums[at, order[after]] = mass[at, order[after]] = 0.0
                after += 1
            end = x.shape[1]
            if after < count:
                middle = 0.5 * entry + 0.5 * entries[at, order[after]]
                end = begin + np.searchsorted(x[row, begin:], middle, side="right")
            found = _segment(x[row], w[row], strides[row], begin, end, entry)
            mass[at, order[k]], sums[at, order[k]] = found[0], found[1]
            total += found[2]
            begin, k = end, after
        cost[at] = total


@inner_kernel
def _segment(x: Any, w: Any, strides: Any, begin: Any, end: Any, entry: Any) -> Any:
    """Return Σ w, Σ w x and Σ w (x − entry)² of sorted points begin … end-1.

    No term is negative, so outliers elsewhere cost no digits.
    """
    mass, moment, cost = 0.0, 0.0, 0.0
    i = begin
    while i < end:
        if i % STRIDE == 0 and i + STRIDE <= end:
            s = i // STRIDE
            gap = strides[s, 1] - entry
            mass += strides[s, 0]
            moment += strides[s, 0] * strides[s, 1]
            cost += strides[s, 2] + strides[s, 0] * gap * gap
            i += STRIDE
        else:
            weight = np.float64(w[i]) if w.size else 1.0
            gap = x[i] - entry
            mass += weight
            moment += weight * x[i]
            cost += weight * gap * gap
            i += 1
    return mass, moment, cost
