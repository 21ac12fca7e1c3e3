"""Compiled products of few rows with a large matrix, and the Cholesky factor made of them.

All sums run in one order, whatever else runs. The kernels release the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inlined, kernel, kernel_with, may_compile
from palette_core.builtins.clusterers.layerwise.vectors import ROWS, TILE_BYTES, add_tile

_fused_kernel = kernel_with(fastmath={"contract"})
_inner_kernel = kernel_with(fastmath={"contract"}, no_cpython_wrapper=True)

PANEL = 48
TILED = may_compile()
BATCH = 32
# What kernels call each other with: for a plain 0 numba compiles the callee once more.
ZERO = np.int64(0)


@_inner_kernel
def add_rows(f: Any, m: Any, out: Any, top: Any, bottom: Any, left: Any, right: Any) -> None:
    """Add Σ_k f[k − top] · m[k, left:right], k from ``top`` to ``bottom``, to ``out``."""
    into = out[left:right]
    k = top
    while k + 4 <= bottom:
        f0, f1, f2, f3 = f[k - top], f[k + 1 - top], f[k + 2 - top], f[k + 3 - top]
        if f0 != 0.0 or f1 != 0.0 or f2 != 0.0 or f3 != 0.0:
            p0, p1 = m[k, left:right], m[k + 1, left:right]
            p2, p3 = m[k + 2, left:right], m[k + 3, left:right]
            for j in range(into.shape[0]):
                into[j] += f0 * p0[j] + f1 * p1[j] + f2 * p2[j] + f3 * p3[j]
        k += 4
    while k < bottom:
        f0, p0 = f[k - top], m[k, left:right]
        for j in range(into.shape[0]):
            into[j] += f0 * p0[j]
        k += 1


@_inner_kernel
def _reach(f: Any) -> Any:
    """Return which columns of a matrix are not all zero: from the first one to the last."""
    first, last = f.shape[1], 0
    for r in range(f.shape[0]):
        k = 0
        while k < first and f[r, k] == 0.0:
            k += 1
        first = min(first, k)
        k = f.shape[1]
        while k > last and f[r, k - 1] == 0.0:
            k -= 1
        last = max(last, k)
    return first, last


@_inner_kernel
def _add_tiles(f: Any, m: Any, out: Any, top: Any, left: Any, right: Any, rest: Any) -> None:
    """Add f · m[top:, left:right] to columns ``left`` to ``right`` of `ROWS` rows of ``out``.

    Arrays:
        rest: ``[T + ROWS, TILE_BYTES]``, for what is less than a tile.
    """
    size = m.itemsize
    wide = TILE_BYTES // size
    first, last = _reach(f)
    depth = last - first
    f_step, m_step, step = f.strides[0] // size, m.strides[0] // size, out.strides[0] // size
    while left + wide <= right:
        begin = (top + first) * m_step + left
        add_tile(f, first, f_step, m, begin, m_step, depth, out, left, step)
        left += wide
    if left < right and depth > 0:
        for k in range(depth):
            for j in range(left, right):
                rest[k, j - left] = m[top + first + k, j]
        for r in range(ROWS):
            for j in range(left, right):
                rest[depth + r, j - left] = out[r, j]
        add_tile(f, first, f_step, rest, ZERO, wide, depth, rest, depth * wide, wide)
        for r in range(ROWS):
            for j in range(left, right):
                out[r, j] = rest[depth + r, j - left]


@_inner_kernel
def add_products(f: Any, m: Any, group: Any, out: Any, top: Any, left: Any, right: Any) -> None:
    """Add f · m[group[r], top:top + T, left:right] to columns ``left`` to ``right`` of each row r.

    Arrays:
        f: ``[R, T]``; m: ``[G, ·, ·]``; group: ``[R]``, ascending; out: ``[R, ·]``. Elements of a
            row lie next to each other.
    """
    rows, depth = f.shape
    rest = np.zeros((depth + ROWS, TILE_BYTES // m.itemsize), m.dtype)
    r = 0
    while r < rows:
        own = m[group[r]]
        if TILED and r + ROWS <= rows and group[r] == group[r + ROWS - 1]:
            _add_tiles(f[r : r + ROWS], own, out[r : r + ROWS], top, left, right, rest)
            r += ROWS
        else:
            add_rows(f[r], own, out[r], top, top + depth, left, right)
            r += 1


@_fused_kernel
def multiply_half(error: Any, group: Any, h: Any, grad: Any, low: Any, high: Any) -> None:
    """Set rows of ``grad`` to what has the same product with those of ``error`` as error · H.

    For half the work: what is right of a block on the diagonal stands for what is left of it, too.
    """
    columns, own = error.shape[1], group[low:high]
    grad[low:high] = 0.0
    twice = np.empty((high - low, BATCH), np.float32)
    for top in range(0, columns, BATCH):
        bottom = min(columns, top + BATCH)
        f = error[low:high, top:bottom]
        for r in range(high - low):
            for k in range(bottom - top):
                twice[r, k] = np.float32(2.0) * f[r, k]
        add_products(f, h, own, grad[low:high], top, np.int64(top), np.int64(bottom))
        add_products(
            twice[:, : bottom - top], h, own, grad[low:high], top, np.int64(bottom), columns
        )


@inlined
def blocks(columns: Any, wide: Any) -> Any:
    """Return which factor of a row each column has; by a loop, which compiles sooner."""
    out = np.empty(columns, np.int64)
    for j in range(columns):
        out[j] = j // wide
    return out


@kernel
def symmetrize(h: Any) -> None:
    """Replace each matrix of ``h`` ``[G, C, C]`` by the mean of itself and its transpose."""
    columns = h.shape[1]
    turned = np.empty((BATCH, BATCH), h.dtype)  # elements of a column lie far apart
    for g in range(h.shape[0]):
        for top in range(0, columns, BATCH):
            for left in range(0, top + 1, BATCH):
                own = h[g, top : top + BATCH, left : left + BATCH]
                other = h[g, left : left + BATCH, top : top + BATCH]
                for j in range(other.shape[0]):
                    for i in range(own.shape[0]):
                        turned[i, j] = other[j, i]
                for i in range(own.shape[0]):
                    for j in range(own.shape[1]):
                        own[i, j] = np.float32(0.5) * (own[i, j] + turned[i, j])
                        turned[i, j] = own[i, j]
                for j in range(other.shape[0]):
                    for i in range(own.shape[0]):
                        other[j, i] = turned[i, j]


# Copies are loops: those of whole arrays take numba seconds to compile.


@inlined
def _transpose(source: Any, into: Any) -> None:
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            into[j, i] = source[i, j]


@inlined
def _negate(source: Any, into: Any) -> None:
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            into[i, j] = -source[i, j]


@_fused_kernel
def factor_panel(a: Any, low: Any, high: Any, lines: Any) -> Any:
    """Replace columns ``low`` to ``high`` of ``a`` by those of its factor; see `factorize`.

    Arrays:
        lines: ``[1, high − low, C − high]``: set to what is below the diagonal block, turned.

    Returns:
        whether every pivot was positive.
    """
    n = a.shape[0]
    above = np.empty(PANEL)
    panel = np.empty((high - low, n - low))
    _transpose(a[low:, low:high], panel)
    for j in range(high - low):
        for i in range(j):
            above[i] = -panel[i, j]
        add_rows(above[:j], panel, panel[j], ZERO, j, j, n - low)
        if not panel[j, j] > 0.0:
            return False
        scale = 1.0 / np.sqrt(panel[j, j])
        for i in range(j, n - low):
            panel[j, i] *= scale
    _transpose(panel.T, a[low:, low:high].T)  # the longer axis in the outer loop
    _transpose(a[high:, low:high], lines[0])
    return True


@_fused_kernel
def subtract_panel(a: Any, low: Any, high: Any, lines: Any, top: Any, bottom: Any) -> None:
    """Take what a panel stands for from rows ``top`` to ``bottom`` of ``a``, all below it."""
    group = np.zeros(BATCH, np.int32)
    for i in range(top, bottom, BATCH):
        end = min(bottom, i + BATCH)
        its = np.empty((end - i, high - low))
        _negate(a[i:end, low:high], its)
        add_products(its, lines, group[: end - i], a[i:end, high:], ZERO, ZERO, end - high)


@_fused_kernel
def factorize(a: Any) -> Any:
    """Replace the lower triangle of ``a`` ``[C, C]`` float64 by its Cholesky factor.

    What stands above it is lost.

    Returns:
        whether every pivot was positive.
    """
    n = a.shape[0]
    for low in range(0, n, PANEL):
        high = min(n, low + PANEL)
        lines = np.empty((1, high - low, n - high))
        if not factor_panel(a, low, high, lines):
            return False
        subtract_panel(a, low, high, lines, high, n)
    return True


@kernel
def pick(h: Any, order: Any, ridge: Any, a: Any, top: Any, bottom: Any) -> None:
    """Set rows of the lower triangle of ``a`` to those of ``h``, its axes in another order.

    Arrays:
        h: ``[C, C]`` float32; order: ``[C]``; ridge: added to the diagonal; a: ``[C, C]`` float64.
    """
    for i in range(top, bottom):
        line = h[order[i]]
        for j in range(i + 1):
            a[i, j] = line[order[j]]
        a[i, i] += ridge


@kernel
def turn_back(a: Any, feedback: Any, pivot: Any, top: Any, bottom: Any) -> None:
    """Set U + Uᵀ and d, float32, from a Cholesky factor of the matrix with its order reversed.

    Rows ``top`` to ``bottom`` of U, that is, and columns of Uᵀ.

    Arrays:
        a: ``[C, C]`` float64; feedback: ``[C, C]``; pivot: ``[C]``.
    """
    last = a.shape[0] - 1
    part = np.empty(a.shape[0])
    for j in range(top, a.shape[0]):
        part[j] = 1.0 / a[last - j, last - j]
    for i in range(top, bottom):
        line = a[last - i]
        pivot[i] = line[last - i] * line[last - i]
        feedback[i, i] = 0.0
        for j in range(i + 1, a.shape[0]):
            value = line[last - j] * part[j]
            feedback[i, j] = value
            feedback[j, i] = value
