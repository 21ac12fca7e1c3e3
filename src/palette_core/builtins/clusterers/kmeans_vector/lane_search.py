"""The nearest of few entries, tried one by one for many points side by side.

Coordinates stand in columns, so that the inner loops run over points and vectorise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel

LANES = 512  # points looked at together; what they need stays in the nearest cache


@inner_kernel
def turn(points: Any, at: Any, n: Any, by: Any, columns: Any) -> None:
    """Write the coordinates of points at … at + n, multiplied, to columns."""
    flat, dim = points.reshape(-1), points.shape[1]
    if dim == 2:  # steps that the compiler knows, as for four
        x, y = columns[0], columns[1]
        for j in range(n):
            i = 2 * (at + j)
            x[j], y[j] = flat[i] * by, flat[i + 1] * by
    elif dim == 4:
        x, y, z, t = columns[0], columns[1], columns[2], columns[3]
        for j in range(n):
            i = 4 * (at + j)
            x[j], y[j] = flat[i] * by, flat[i + 1] * by
            z[j], t[j] = flat[i + 2] * by, flat[i + 3] * by
    else:
        for d in range(dim):
            for j in range(n):
                columns[d, j] = points[at + j, d] * by


@inner_kernel
def nearest(columns: Any, entries: Any, n: Any, near: Any, best: Any) -> None:
    """Find the nearest entry of n points; the lowest among equals.

    Arrays and bounds:
        columns: ``[W, LANES]`` coordinates, W two or a multiple of four.
        entries: ``[K, W]``, K a multiple of four.
        near: ``[3, LANES]``, overwritten: squared distances, and room for parts of two.
        best: ``[LANES]`` int32, overwritten.
    """
    first, parts, wide = near[0], near[1:], columns.shape[0]
    for j in range(n):
        first[j] = np.inf
        best[j] = 0
    if wide == 2:
        for k in range(0, entries.shape[0], 4):
            _try_four(columns[0], columns[1], entries[k : k + 4], n, k, first, best)
        return
    for k in range(0, entries.shape[0], 2):
        parts[0, :n], parts[1, :n] = 0.0, 0.0
        for d in range(0, wide - 4, 4):
            for m in range(2):
                _add_four(columns[d : d + 4], entries[k + m, d : d + 4], n, parts[m])
        _try_two(columns[wide - 4 :], entries[k : k + 2, wide - 4 :], n, k, parts, first, best)


@inner_kernel
def _try_four(x: Any, y: Any, entries: Any, n: Any, k: Any, first: Any, best: Any) -> None:
    """Keep entries k … k + 3 of two coordinates where they are nearer than all before."""
    a, b, c, d = entries[0, 0], entries[1, 0], entries[2, 0], entries[3, 0]
    e, f, g, h = entries[0, 1], entries[1, 1], entries[2, 1], entries[3, 1]
    one, two, three, four = np.int32(k), np.int32(k + 1), np.int32(k + 2), np.int32(k + 3)
    for j in range(n):
        u, v = x[j], y[j]
        low, at = first[j], best[j]
        own = (u - a) * (u - a) + (v - e) * (v - e)
        at, low = one if own < low else at, own if own < low else low
        own = (u - b) * (u - b) + (v - f) * (v - f)
        at, low = two if own < low else at, own if own < low else low
        own = (u - c) * (u - c) + (v - g) * (v - g)
        at, low = three if own < low else at, own if own < low else low
        own = (u - d) * (u - d) + (v - h) * (v - h)
        at, low = four if own < low else at, own if own < low else low
        first[j], best[j] = low, at


@inner_kernel
def _try_two(columns: Any, entries: Any, n: Any, k: Any, parts: Any, first: Any, best: Any) -> None:
    """Add the last four coordinates of entries k and k + 1, and keep them where they are nearer."""
    x, y, z, t = columns[0], columns[1], columns[2], columns[3]
    a, b, c, d = entries[0, 0], entries[0, 1], entries[0, 2], entries[0, 3]
    e, f, g, h = entries[1, 0], entries[1, 1], entries[1, 2], entries[1, 3]
    one, two, of_one, of_two = np.int32(k), np.int32(k + 1), parts[0], parts[1]
    for j in range(n):
        u, v, p, q = x[j], y[j], z[j], t[j]
        low, at = first[j], best[j]
        own = (u - a) * (u - a) + (v - b) * (v - b) + (p - c) * (p - c) + (q - d) * (q - d)
        own += of_one[j]
        at, low = one if own < low else at, own if own < low else low
        own = (u - e) * (u - e) + (v - f) * (v - f) + (p - g) * (p - g) + (q - h) * (q - h)
        own += of_two[j]
        at, low = two if own < low else at, own if own < low else low
        first[j], best[j] = low, at


@inner_kernel
def _add_four(columns: Any, entry: Any, n: Any, parts: Any) -> None:
    """Add four coordinates to squared distances."""
    x, y, z, t = columns[0], columns[1], columns[2], columns[3]
    a, b, c, d = entry[0], entry[1], entry[2], entry[3]
    for j in range(n):
        u, v, p, q = x[j] - a, y[j] - b, z[j] - c, t[j] - d
        parts[j] += u * u + v * v + p * p + q * q
