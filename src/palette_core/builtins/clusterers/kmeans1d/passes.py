"""Passes over all points of a block: numba kernels that count, gather and assign."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inlined, kernel, short_kernel

_CHUNK = 512  # points whose cells are worked out together, so that the compiler can vectorise
_FEW = 8  # points that are asked together whether more is to be done: for most it is not


@kernel
def count_patterns(bits: Any, out: Any) -> None:
    """Add to ``out`` ``[65536]`` int64 how often each 16-bit pattern occurs in ``bits``."""
    for i in range(bits.size):
        out[bits[i]] += 1


@kernel
def weigh_patterns(bits: Any, weights: Any, out: Any) -> None:
    """Add to ``out`` ``[65536]`` float64 the weight of each 16-bit pattern."""
    for i in range(bits.size):
        out[bits[i]] += weights[i]


@kernel
def look_up(bits: Any, table: Any, out: Any) -> None:
    """Write ``table[bits]`` to ``out``."""
    for i in range(bits.size):
        out[i] = table[bits[i]]


@inlined
def cells_of(x: Any, low: Any, per_unit: Any, top: Any, out: Any) -> None:
    """Write the cell of each float32 value to int32 ``out``.

    Cells 1 … top-1 are ``1 / per_unit`` wide and start at ``low``; 0 and ``top`` take what lies
    below and above. The map is monotone: no arithmetic on it rounds x past a larger one.
    """
    one, most, least = np.float32(1.0), np.float32(top), np.float32(0.0)
    for i in range(x.size):
        t = (x[i] - low) * per_unit + one
        t = t if t > least else least
        t = t if t < most else most
        out[i] = np.int32(t)


@kernel
def fill_cells(x: Any, w: Any, low: Any, per_unit: Any, out: Any) -> None:
    """Add points to cells: ``out`` ``[cells, 2]`` float64 of Σw, Σwx.

    With weights (``w`` not empty) ``out`` has a third column, the number of points.
    """
    at = np.empty(_CHUNK, np.int32)
    top = out.shape[0] - 1
    # Unsigned indices in one dimension: signed ones are looked at for being negative.
    flat, one, two, three = out.reshape(-1), np.uint64(1), np.uint64(2), np.uint64(3)
    for first in range(0, x.size, _CHUNK):
        part = x[first : first + _CHUNK]
        cells_of(part, low, per_unit, top, at)
        if w.size == 0:
            for i in range(np.uint64(part.size)):
                c = np.uint64(at[i]) * two
                flat[c] += 1.0
                flat[c + one] += np.float64(part[i])
        else:
            weights = w[first : first + _CHUNK]
            for i in range(np.uint64(part.size)):
                c = np.uint64(at[i]) * three
                v = np.float64(weights[i])
                flat[c] += v
                flat[c + one] += v * np.float64(part[i])
                flat[c + two] += 1.0


@kernel
def gather_open(
    x: Any, w: Any, low: Any, per_unit: Any, is_open: Any, out_x: Any, out_w: Any
) -> int:
    """Collect the points in open cells, in order; returns how many.

    Args:
        x: points.
        w: their weights, empty for none.
        low: see `cells_of`.
        per_unit: see `cells_of`.
        is_open: ``[cells]`` uint8.
        out_x: float32 out, one longer than what it receives.
        out_w: the same for weights, empty for none.
    """
    at = np.empty(_CHUNK, np.int32)
    top, few = is_open.size - 1, np.uint64(_FEW)
    n = 0
    for first in range(0, x.size, _CHUNK):
        part = x[first : first + _CHUNK]
        weights = w[first : first + _CHUNK]
        cells_of(part, low, per_unit, top, at)
        i, size = np.uint64(0), np.uint64(part.size)
        while i + few <= size:
            some = np.uint8(0)
            for j in range(few):
                some |= is_open[np.uint64(at[i + j])]
            if some:
                n = _append(part, weights, at, is_open, i, few, out_x, out_w, n)
            i += few
        n = _append(part, weights, at, is_open, i, size - i, out_x, out_w, n)
    return n


@inlined
def _append(
    x: Any, w: Any, at: Any, is_open: Any, i: Any, count: Any, out_x: Any, out_w: Any, n: int
) -> int:
    """Write those of ``count`` points from ``i`` on that lie in open cells behind ``n`` others."""
    for j in range(count):
        out_x[n] = x[i + j]
        if w.size > 0:
            out_w[n] = w[i + j]
        n += is_open[np.uint64(at[i + j])]
    return n


@kernel
def assign_cells(x: Any, low: Any, per_unit: Any, base: Any, limits: Any, out: Any) -> None:
    """Write to uint8 ``out`` the number of ``limits`` below each point.

    Args:
        x: points.
        low: see `cells_of`.
        per_unit: see `cells_of`.
        base: ``[cells + 1]`` uint8, limits in lower cells.
        limits: ascending float32, ending with infinity.
        out: codes.
    """
    at = np.empty(_CHUNK, np.int32)
    top, one, few = base.size - 2, np.uint64(1), np.uint64(_FEW)
    for first in range(0, x.size, _CHUNK):
        part, codes = x[first : first + _CHUNK], out[first : first + _CHUNK]
        cells_of(part, low, per_unit, top, at)
        i, size = np.uint64(0), np.uint64(part.size)
        while i + few <= size:
            some = np.uint8(0)  # limits lie in a cell
            for j in range(few):
                cell = np.uint64(at[i + j])
                codes[i + j] = base[cell]
                some |= base[cell] ^ base[cell + one]
            if some:
                _count_limits(part, at, base, limits, i, few, codes)
            i += few
        _count_limits(part, at, base, limits, i, size - i, codes)


@inlined
def _count_limits(x: Any, at: Any, base: Any, limits: Any, i: Any, count: Any, codes: Any) -> None:
    """Write the codes of ``count`` points from ``i`` on, wherever limits lie."""
    for j in range(count):
        code = np.uint64(base[np.uint64(at[i + j])])
        while x[i + j] > limits[code]:
            code += np.uint64(1)
        codes[i + j] = np.uint8(code)


@short_kernel
def merge_atoms(
    cells: Any, is_open: Any, x: Any, w: Any, about: float, out_w: Any, out_x: Any, out_cell: Any
) -> int:
    """Merge closed cells, at their means, with the sorted points of open ones into atoms.

    Args:
        cells: see `fill_cells`.
        is_open: ``[cells]`` uint8.
        x: sorted points of open cells.
        w: their weights, empty for ones.
        about: subtracted from every value.
        out_w: weights of atoms out.
        out_x: values of atoms out.
        out_cell: cells of atoms out, −1 for points of open ones.

    Returns:
        The number of atoms. Points of no weight make none.
    """
    n, p = 0, 0
    for c in range(cells.shape[0]):
        if is_open[c] == 0:
            if cells[c, 0] > 0.0:
                out_w[n] = cells[c, 0]
                out_x[n] = cells[c, 1] / cells[c, 0] - about
                out_cell[n] = c
                n += 1
            continue
        count = cells[c, 0] if cells.shape[1] == 2 else cells[c, 2]
        end = p + np.int64(count)
        while p < end:
            value = x[p]
            weight = 0.0
            while p < end and x[p] == value:
                weight += 1.0 if w.size == 0 else np.float64(w[p])
                p += 1
            if weight > 0.0:
                out_w[n], out_x[n], out_cell[n] = weight, np.float64(value) - about, -1
                n += 1
    return n
