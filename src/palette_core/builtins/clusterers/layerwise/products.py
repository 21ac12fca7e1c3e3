"""Compiled products of few rows with a large matrix, and the Cholesky factor made of them.

All sums run in one order, whatever else runs. The kernels release the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inlined, kernel_with

_fused_kernel = kernel_with(fastmath={"contract"})
_inner_kernel = kernel_with(fastmath={"contract"}, no_cpython_wrapper=True)

_PANEL = 48
_TILE = 512  # columns, so that what four rows of a product need stays in the cache
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
def _add_four(f: Any, m: Any, out: Any, top: Any, left: Any, right: Any) -> None:
    """Add Σ_k f[r, k] · m[top + k, left:right] to row r of ``out``, four k and four rows."""
    a0, a1, a2, a3 = f[0, 0], f[0, 1], f[0, 2], f[0, 3]
    b0, b1, b2, b3 = f[1, 0], f[1, 1], f[1, 2], f[1, 3]
    c0, c1, c2, c3 = f[2, 0], f[2, 1], f[2, 2], f[2, 3]
    d0, d1, d2, d3 = f[3, 0], f[3, 1], f[3, 2], f[3, 3]
    m0, m1 = m[top, left:right], m[top + 1, left:right]
    m2, m3 = m[top + 2, left:right], m[top + 3, left:right]
    a, b, c, d = out[0, left:right], out[1, left:right], out[2, left:right], out[3, left:right]
    for j in range(a.shape[0]):
        x0, x1, x2, x3 = m0[j], m1[j], m2[j], m3[j]
        a[j] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
        b[j] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
        c[j] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
        d[j] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3


@_inner_kernel
def _are_zero(f: Any) -> Any:
    for r in range(f.shape[0]):
        for k in range(f.shape[1]):
            if f[r, k] != 0.0:
                return False
    return True


@_inner_kernel
def add_products(f: Any, m: Any, group: Any, out: Any, top: Any, left: Any, right: Any) -> None:
    """Add f · m[group[r], top:top + T, left:right] to columns ``left`` to ``right`` of each row r.

    Arrays:
        f: ``[R, T]``; m: ``[G, ·, ·]``; group: ``[R]``; out: ``[R, ·]``.
    """
    rows, depth = f.shape
    for start in range(left, right, _TILE):
        end = min(right, start + _TILE)
        r = 0
        while r < rows:
            if r + 4 <= rows and group[r] == group[r + 3]:
                own, into = m[group[r]], out[r : r + 4]
                k = 0
                while k + 4 <= depth:
                    part = f[r : r + 4, k : k + 4]
                    if not _are_zero(part):
                        _add_four(part, own, into, top + k, start, end)
                    k += 4
                for i in range(4):
                    add_rows(f[r + i, k:], own, into[i], top + k, top + depth, start, end)
                r += 4
            else:
                add_rows(f[r], m[group[r]], out[r], top, top + depth, start, end)
                r += 1


# Copies are loops: those of whole arrays take numba seconds to compile.


@inlined
def copy(source: Any, into: Any) -> None:
    """Copy a matrix to the corner of one that is at least as large."""
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            into[i, j] = source[i, j]


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
def factorize(a: Any) -> Any:
    """Replace the lower triangle of ``a`` ``[C, C]`` float64 by its Cholesky factor.

    What stands above it is lost.

    Returns:
        whether every pivot was positive.
    """
    n = a.shape[0]
    group, above = np.zeros(n, np.int32), np.empty(_PANEL)
    for low in range(0, n, _PANEL):
        high = min(n, low + _PANEL)
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
        lines = np.empty((1, high - low, n - high))
        _transpose(panel.T, a[low:, low:high].T)  # the longer axis in the outer loop
        _transpose(a[high:, low:high], lines[0])
        for i in range(high, n, BATCH):
            end = min(n, i + BATCH)
            its = np.empty((end - i, high - low))
            _negate(a[i:end, low:high], its)
            add_products(its, lines, group[i:end], a[i:end, high:], ZERO, ZERO, end - high)
    return True
