"""The rounding of tables on the CPU to integers under one of several scales, table by table."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel
from palette_core.builtins.lut_quantizers._scale_kernel import sweep

_SMALLEST, _LARGEST = 2.0**-149, float(np.finfo(np.float32).max)


@kernel
def quantize_symmetric(
    lut: Any, ladder: Any, center: int, lowest: int, highest: int, values: Any, made: Any
) -> None:
    """Write the integers, scale and zero point of each table, all with one zero point.

    Args:
        lut: ``[B, M]`` float64.
        ladder: ``[L]`` float64, the magnitudes of levels: 0, 1, and so on.
        center: the zero point.
        lowest: the lowest value that may be stored.
        highest: the highest.
        values: ``[B, M]`` of the dtype of the values, is written.
        made: ``[B, 2]`` float32, scale and zero point, is written.
    """
    blocks, count = lut.shape
    up, down = highest - center, center - lowest
    units, entries = np.ones(blocks), np.empty((blocks, count))
    # Half a code more than the highest where the lowest code goes one further down.
    scales, zeros = np.empty((2, blocks)), np.full((2, blocks), float(center))
    for b in range(blocks):
        most = 0.0
        for m in range(count):
            most = max(most, abs(lut[b, m]))
        units[b] = most if most > 0.0 else 1.0
        for m in range(count):
            entries[b, m] = lut[b, m] / units[b]
        scales[0, b] = (most / units[b]) / ((up + down) / 2) * units[b]
    scales[1] = sweep(entries, ladder, up, down, 0, np.full(blocks, np.inf)) * units
    round_to_best(lut, scales, zeros, lowest, highest, values, made)


@kernel
def round_to_best(
    lut: Any, scales: Any, zeros: Any, lowest: int, highest: int, values: Any, made: Any
) -> None:
    """Write the integers and the float32 scale of least squared error, the first among equals.

    Args:
        lut: ``[B, M]`` float64.
        scales: ``[C, B]`` float64, those to choose from; what is not positive counts as 1.
        zeros: ``[C, B]`` float64, their zero points.
        lowest: the lowest value that may be stored.
        highest: the highest.
        values: ``[B, M]`` of the dtype of the values, is written.
        made: ``[B, 2]`` float32, scale and zero point, is written.
    """
    count = lut.shape[1]
    for b in range(lut.shape[0]):
        best, least = 0, np.inf
        for c in range(scales.shape[0]):
            scale, zero = _stored(scales[c, b]), zeros[c, b]
            error = 0.0
            for m in range(count):
                level = _level(lut[b, m], scale, zero, lowest, highest)
                gap = lut[b, m] - np.float64(np.float32(level - zero) * scale)
                error += gap * gap
            if error < least:
                best, least = c, error
        scale, zero = _stored(scales[best, b]), zeros[best, b]
        for m in range(count):
            values[b, m] = _level(lut[b, m], scale, zero, lowest, highest)
        made[b, 0], made[b, 1] = scale, zero


@inner_kernel
def _stored(scale: float) -> Any:
    """Return a scale as it is stored: positive, finite, float32."""
    return np.float32(min(max(scale, _SMALLEST), _LARGEST) if scale > 0.0 else 1.0)


@inner_kernel
def _level(x: float, scale: Any, zero: float, lowest: int, highest: int) -> Any:
    """Return the value stored for an entry."""
    level = np.rint(x / np.float64(scale)) + zero
    return min(max(level, float(lowest)), float(highest))
