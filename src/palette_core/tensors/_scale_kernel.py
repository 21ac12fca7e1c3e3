"""The compiled search for scales, for scalar entries in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel

CELLS = 1024  # of a table's range, each with the entry nearest to its middle
_LEAST = 2.0**-126  # of factors: the reciprocals of smaller ones are infinite
_MOST = 1e30  # cells per unit: more would come to infinities, and to cells that are none


@kernel
def make_cells(tables: Any, low: Any, per_unit: Any, values: Any) -> None:
    """Write the entry nearest to the middle of each cell.

    Args:
        tables: ``[B, K]`` float32 ascending.
        low: ``[B]`` float32 out, where the first cell begins.
        per_unit: ``[B]`` float32 out, cells per unit.
        values: ``[B, CELLS]`` float32 out.
    """
    count = tables.shape[1]
    for b in range(tables.shape[0]):
        first, last = tables[b, 0], tables[b, count - 1]
        width = (last - first) / CELLS
        low[b] = first
        per_unit[b] = np.float32(1.0) / width if width > 0.0 else np.float32(0.0)
        k = 0
        for i in range(CELLS):
            middle = first + (i + np.float32(0.5)) * width
            while k + 1 < count and middle - tables[b, k] > tables[b, k + 1] - middle:
                k += 1
            values[b, i] = tables[b, k]


@inner_kernel
def _products(
    x: Any, weights: Any, per: Any, low: Any, per_unit: Any, values: Any, out: Any
) -> None:
    """Set ``out`` to Σ w x d and Σ w d², d the entries that x times ``per`` comes to."""
    top = np.float32(CELLS - 1)
    zero = np.float32(0.0)
    n0 = n1 = q0 = q1 = zero
    weighted = weights.shape[0] > 0
    factor, start = per * per_unit, -low * per_unit
    for j in range(x.shape[0]):
        at = min(max(x[j] * factor + start, zero), top)
        d = values[np.int32(at)]
        w = d * weights[j] if weighted else d
        if j & 1:
            n1 += w * x[j]
            q1 += w * d
        else:
            n0 += w * x[j]
            q0 += w * d
    out[0], out[1] = n0 + n1, q0 + q1


@kernel
def search_scales(
    x: Any,
    weights: Any,
    size: int,
    table_of_row: Any,
    table_of_block: Any,
    low: Any,
    per_unit: Any,
    values: Any,
    stretches: Any,
    scale: Any,
) -> None:
    """Replace every factor by the best of those that some stretches of it come to.

    With the entries d that a stretched factor makes of a block x, the best factor is
    Σ w x d / Σ w d², and the error Σ w x² less (Σ w x d)² / Σ w d². Factors of 0 stay,
    and those so small that float32 cannot divide by them.

    Args:
        x: ``[R, C]`` float32, a channel in each row.
        weights: the same, or ``[R, 0]`` for ones.
        size: columns that share a factor.
        table_of_row: ``[R]`` int32, what a row adds to the number of its table.
        table_of_block: ``[C / size]`` int32, what a block adds.
        low: from `make_cells`.
        per_unit: from `make_cells`.
        values: from `make_cells`.
        stretches: ``[S]`` float32.
        scale: ``[R, C / size]`` float32, overwritten.
    """
    sums = np.empty(2, np.float32)
    for r in range(x.shape[0]):
        for p in range(scale.shape[1]):
            old = scale[r, p]
            if old == 0.0:
                continue
            table = table_of_row[r] + table_of_block[p]
            part = x[r, p * size : (p + 1) * size]
            own = weights[r, p * size : (p + 1) * size]
            most = np.float32(0.0)
            for stretch in stretches:
                if old * stretch < _LEAST or per_unit[table] > _MOST:
                    continue
                per = np.float32(1.0) / (old * stretch)
                if per * per_unit[table] > _MOST or abs(low[table] * per_unit[table]) > _MOST:
                    continue
                _products(part, own, per, low[table], per_unit[table], values[table], sums)
                if sums[0] > 0.0 and sums[1] > 0.0:
                    gain = sums[0] * (sums[0] / sums[1])
                    if gain > most:
                        most = gain
                        scale[r, p] = sums[0] / sums[1]
