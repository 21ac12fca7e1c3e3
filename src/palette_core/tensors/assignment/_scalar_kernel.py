"""Costs of tables of scalars, from points that are sorted once: compiled, table by table."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inlined, inner_kernel, kernel

STRIDE = 32  # sorted points summed up together
_CELLS = 2048  # of the range of the bounds, each with the bounds below it counted
_PART = 512  # points whose cells are worked out together, so that the compiler can vectorise


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


@kernel
def count_bounds(x: Any, bounds: Any, order: Any, out: Any) -> None:
    """Give every point the entry between whose bounds it lies.

    A point's cell says how many bounds lie in lower cells; from there on they are compared.

    Args:
        x: ``[B, N]`` float32 or float64, not NaN, in any order.
        bounds: ``[B, K]`` of that dtype, ascending, the last of each row infinite.
        order: ``[B, K]`` uint8, which entry has so many bounds below it.
        out: ``[B, N]`` uint8, overwritten.
    """
    size = min(_CELLS, max(2, x.shape[1]))
    base, at = np.empty(size, np.uint8), np.empty(_PART, np.int32)
    for b in range(x.shape[0]):
        limits = bounds[b]
        last = max(0, limits.size - 2)
        low, width = limits[0], limits[last] - limits[0]
        per_unit = (size - 1) / width if width > 0.0 else width
        _cells_of(limits[: last + 1], low, per_unit, size - 1, at)
        k = 0
        for c in range(size):
            while k <= last and at[k] < c:
                k += 1
            base[c] = k
        for first in range(0, x.shape[1], _PART):
            part, codes = x[b, first : first + _PART], out[b, first : first + _PART]
            _cells_of(part, low, per_unit, size - 1, at)
            for i in range(part.size):
                code = np.int64(base[at[i]])
                while part[i] > limits[code]:
                    code += 1
                codes[i] = order[b, code]


@inlined
def _cells_of(x: Any, low: Any, per_unit: Any, top: int, out: Any) -> None:
    """Write the cell of each value: equal ones from ``low`` up, the ends hold what lies outside.

    The map is monotone: no arithmetic on it rounds x past a larger one.
    """
    for i in range(x.size):
        t = (x[i] - low) * per_unit
        t = t if t > 0.0 else 0.0 * low  # also what is no number, of infinities
        t = t if t < top else np.float64(top)
        out[i] = np.int32(t)
