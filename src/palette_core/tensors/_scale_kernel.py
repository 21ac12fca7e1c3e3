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
    x: Any, weights: Any, per: Any, low: Any, per_unit: Any, values: Any, at: Any, out: Any
) -> None:
    """Set ``out`` to Σ w x d and Σ w d², d the entries that x times ``per`` comes to.

    ``at`` is room for as many cells as there are x. Four sums at once, as one would wait for the
    other; unsigned indices, as signed ones are looked at for being negative.
    """
    top = np.float32(CELLS - 1)
    zero = np.float32(0.0)
    factor, start = per * per_unit, -low * per_unit
    count, one, four = np.uint64(x.shape[0]), np.uint64(1), np.uint64(4)
    for j in range(count):
        at[j] = np.int32(min(max(x[j] * factor + start, zero), top))
    weighted = weights.shape[0] > 0
    n0 = n1 = n2 = n3 = zero
    q0 = q1 = q2 = q3 = zero
    whole = count - count % four
    for j in range(np.uint64(0), whole, four):
        d0, d1 = values[np.uint64(at[j])], values[np.uint64(at[j + one])]
        d2, d3 = values[np.uint64(at[j + one + one])], values[np.uint64(at[j + four - one])]
        w0, w1, w2, w3 = d0, d1, d2, d3
        if weighted:
            w0, w1 = d0 * weights[j], d1 * weights[j + one]
            w2, w3 = d2 * weights[j + one + one], d3 * weights[j + four - one]
        n0 += w0 * x[j]
        n1 += w1 * x[j + one]
        n2 += w2 * x[j + one + one]
        n3 += w3 * x[j + four - one]
        q0 += w0 * d0
        q1 += w1 * d1
        q2 += w2 * d2
        q3 += w3 * d3
    for j in range(whole, count):
        d = values[np.uint64(at[j])]
        w = d * weights[j] if weighted else d
        n0 += w * x[j]
        q0 += w * d
    out[0], out[1] = n0 + n1 + (n2 + n3), q0 + q1 + (q2 + q3)


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
    at = np.empty(size, np.int32)
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
                _products(part, own, per, low[table], per_unit[table], values[table], at, sums)
                if sums[0] > 0.0 and sums[1] > 0.0:
                    gain = sums[0] * (sums[0] / sums[1])
                    if gain > most:
                        most = gain
                        scale[r, p] = sums[0] / sums[1]


@kernel
def find_limits(tables: Any, low: Any, per_unit: Any, limits: Any, below: Any, first: Any) -> None:
    """Write up to where each entry is the nearest, and how many limits lie in lower cells.

    Args:
        tables: ``[B, K]`` float32 ascending.
        low: from `make_cells`.
        per_unit: from `make_cells`.
        limits: ``[B, K]`` float32 out: between an entry and the next; the last is infinite.
        below: ``[B, CELLS]`` uint8 out.
        first: ``[B, K]`` uint8 out, the first of the entries that are equal to each.
    """
    count = tables.shape[1]
    for b in range(tables.shape[0]):
        below[b] = 0
        first[b, 0] = 0
        for k in range(count - 1):
            same = tables[b, k] == tables[b, k + 1]
            first[b, k + 1] = first[b, k] if same else np.uint8(k + 1)
            middle = (np.float64(tables[b, k]) + np.float64(tables[b, k + 1])) * 0.5
            limit = np.float32(middle)
            if limit > middle:
                limit = np.nextafter(limit, np.float32(-np.inf))
            limits[b, k] = limit
            below[b, _cell(limit, low[b], per_unit[b]) + 1 :] += np.uint8(1)
        limits[b, count - 1] = np.float32(np.inf)


@inner_kernel
def _cell(unit: Any, low: Any, per_unit: Any) -> Any:
    """Return the cell of a value; the first for what is none."""
    at = (unit - low) * per_unit
    at = at if at > np.float32(0.0) else np.float32(0.0)
    return np.int32(min(at, np.float32(CELLS - 1)))


@kernel
def settle(
    x: Any,
    weights: Any,
    size: int,
    table_of_row: Any,
    table_of_block: Any,
    low: Any,
    per_unit: Any,
    below: Any,
    limits: Any,
    first: Any,
    tables: Any,
    scale: Any,
    codes: Any,
    sums: Any,
) -> float:
    """Give every weight the entry nearest to it, by its factor; return Σ w (x − s d)².

    Args:
        x: ``[R, C]`` float32, a channel in each row.
        weights: the same, or ``[R, 0]`` for ones.
        size: columns that share a factor.
        table_of_row: ``[R]`` int32, what a row adds to the number of its table.
        table_of_block: ``[C / size]`` int32, what a block adds.
        low: from `make_cells`.
        per_unit: from `make_cells`.
        below: from `find_limits`.
        limits: from `find_limits`.
        first: from `find_limits`.
        tables: ``[B, K]`` float32 ascending.
        scale: ``[R, C / size]`` float32; by 1 is divided where it is 0.
        codes: ``[R, C]`` uint8 out.
        sums: ``[B, K, 2]`` float64, to which Σ w s x and Σ w s² of each entry are added; or empty.
    """
    error = 0.0
    one = np.float32(1.0)
    unit, at = np.empty(size, np.float32), np.empty(size, np.int32)
    for r in range(x.shape[0]):
        for p in range(scale.shape[1]):
            factor = scale[r, p]
            by = one if factor == 0.0 else factor
            b = table_of_row[r] + table_of_block[p]
            part, own = x[r, p * size : (p + 1) * size], weights[r, p * size : (p + 1) * size]
            start, per = low[b], per_unit[b]
            ends, base, table, out = limits[b], below[b], tables[b], codes[r, p * size :]
            own_first = first[b]
            for j in range(size):
                unit[j] = part[j] / by
                at[j] = _cell(unit[j], start, per)
            wide = np.float64(factor)
            e0 = e1 = 0.0
            for j in range(np.uint64(size)):
                code = np.uint64(base[np.uint64(at[j])])
                while unit[j] > ends[code]:
                    code += np.uint64(1)
                out[j] = own_first[code]
                gap = np.float64(part[j]) - wide * np.float64(table[code])
                gap *= gap * (np.float64(own[j]) if own.size > 0 else 1.0)
                if j & np.uint64(1):
                    e1 += gap
                else:
                    e0 += gap
            error += e0 + e1
            if sums.size == 0:
                continue
            for j in range(size):
                w = wide * (np.float64(own[j]) if own.size > 0 else 1.0)
                sums[b, out[j], 0] += w * np.float64(part[j])
                sums[b, out[j], 1] += w * wide
    return error
