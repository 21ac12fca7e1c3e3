"""Proposals of `quantized_fit` for integer tables on the CPU, table by table."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, short_kernel


@short_kernel
def propose_integers(
    means: Any,
    mass: Any,
    scales: Any,
    zeros: Any,
    lowest: int,
    highest: int,
    stretches: Any,
    refits: int,
    out: Any,
) -> None:
    """Write the proposals for each table: means, their levels, levels under a scale that fits.

    Args:
        means: ``[B, M]`` float64, of the points of each entry.
        mass: ``[B, M]`` float64, the weight of those points.
        scales: ``[B]`` float64, the present ones.
        zeros: ``[B]`` float64, their zero points.
        lowest: the lowest value that may be stored.
        highest: the highest.
        stretches: ``[S]`` float64, factors of the present scale to try.
        refits: how often a scale is fitted to its levels.
        out: ``[3, B, M]`` float64, is written.
    """
    blocks, count = means.shape
    levels = np.empty(count)
    for b in range(blocks):
        low, high = lowest - zeros[b], highest - zeros[b]
        out[0, b] = out[2, b] = means[b]
        _round(means[b], scales[b], low, high, levels)
        for m in range(count):
            out[1, b, m] = levels[m] * scales[b]
        least = np.inf
        for stretch in stretches:
            scale = scales[b] * stretch
            for _ in range(refits):
                _round(means[b], scale, low, high, levels)
                scale = _refitted(means[b], mass[b], levels, scale)
            error = 0.0
            for m in range(count):
                gap = means[b, m] - levels[m] * scale
                error += mass[b, m] * (gap * gap)
            if error < least:
                least = error
                for m in range(count):
                    out[2, b, m] = levels[m] * scale


@inner_kernel
def _round(means: Any, scale: float, low: float, high: float, levels: Any) -> None:
    for m in range(means.size):
        levels[m] = min(max(np.rint(means[m] / scale), low), high)


@inner_kernel
def _refitted(means: Any, mass: Any, levels: Any, scale: float) -> float:
    """Return the scale that suits weighted levels, or the present one where none does."""
    square = product = 0.0
    for m in range(means.size):
        square += mass[m] * (levels[m] * levels[m])
        product += mass[m] * means[m] * levels[m]
    fitted = product / square if square > 0.0 else product
    return fitted if fitted > 0.0 else scale


@short_kernel
def find_same(tables: Any, known: Any, near: float, out: Any) -> None:
    """Write which known table each table equals, to ``near`` of its largest entry; -1 for none.

    Args:
        tables: ``[T, B, M]`` float64.
        known: ``[R, B, M]`` float64.
        near: how far entries may be apart.
        out: ``[T, B]`` int64, is written.
    """
    for b in range(tables.shape[1]):
        for t in range(tables.shape[0]):
            out[t, b] = -1
            for r in range(known.shape[0]):
                most = np.abs(known[r, b]).max()
                if out[t, b] < 0 and _are_near(tables[t, b], known[r, b], near * most):
                    out[t, b] = r


@inner_kernel
def _are_near(x: Any, y: Any, gap: float) -> bool:
    near = True
    for m in range(x.size):
        near &= abs(x[m] - y[m]) <= gap
    return near
