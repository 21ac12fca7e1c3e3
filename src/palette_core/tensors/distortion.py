"""Distortion of a palettized weight: sums of squares.

In host memory, one compiled pass over the weight as it lies there, without decoding it. Sums are
taken over fixed stretches and added in order, so that they are the same for any number of threads.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core.tensors.codebook import dequantize_lut
from palette_core.tensors.layout import Shape
from palette_core.tensors.palettized import PalettizedTensor

Places = NDArray[np.int64]

_STRETCH = 1 << 18  # elements one thread takes at a time
_DECODED = 1 << 22  # elements compared at once on a device
# Significant bits of a float, and the exponent of its smallest step.
_FORMATS = {
    torch.float16: (11, -24),
    torch.bfloat16: (8, -133),
    torch.float32: (24, -149),
    torch.float64: (53, -1074),
}


def square_sums(weight: Tensor, palettized: PalettizedTensor) -> tuple[float, float]:
    """Return Σ (decoded − weight)² and Σ weight², added in float64.

    Args:
        weight: floating, on any device.
        palettized: what stands for it, on the same.
    """
    return distortion(weight, palettized)[:2]


def distortion(weight: Tensor, palettized: PalettizedTensor) -> tuple[float, float, int]:
    """Return what `square_sums` does, and how many of the weight are zero."""
    if palettized.mask is None and weight.device.type == "cpu" and weight.dtype in _FORMATS:
        return _on_host(weight, palettized)
    flat, decoded = weight.reshape(-1), palettized.decode().reshape(-1)
    unit = _unit(weight)
    error = norm = 0.0
    zeros = flat.numel() - int(torch.count_nonzero(flat))
    for at in range(0, flat.numel(), _DECODED):
        x = flat[at : at + _DECODED].double() / unit
        gap = decoded[at : at + _DECODED].double() / unit - x
        error += float(gap.square().sum())
        norm += float(x.square().sum())
    return _in_squares(error, unit), _in_squares(norm, unit), zeros


def _on_host(weight: Tensor, palettized: PalettizedTensor) -> tuple[float, float, int]:
    """Return the sums, of tensors in host memory."""
    from palette_core._common.threads import map_threads  # numba loads slowly
    from palette_core.tensors._distortion_kernel import add_squares

    place = _Place(palettized)
    raw = _raw(weight)
    codes = palettized.indices.contiguous().numpy().reshape(-1)
    unit = _unit(weight)
    entries = dequantize_lut(palettized.lut, palettized.lut_scale, palettized.lut_zero_point)
    table = entries.to(palettized.dtype).double().numpy().reshape(-1) * (1.0 / unit)
    # Without factors nothing is rounded: entries decode as they are.
    scale, (digits, least) = None if place.inner.size == 1 else np.ones(1), (0, 0)
    if palettized.scale is not None:
        scale = palettized.scale.double().numpy().reshape(-1)
        digits, least = _FORMATS[palettized.dtype]
        least -= round(math.log2(unit))

    def sums(stretch: slice) -> NDArray[np.float64]:
        out = np.zeros(3)
        x = raw[stretch]
        if x.dtype == np.uint16:
            x = _values(weight.dtype).take(x)
        add_squares(
            x, stretch.start, 1.0 / unit, codes, table, scale, digits, least,
            place.outer, place.along, place.inner, place.width, place.dim,
            place.outer_scale, place.along_scale, place.inner_scale, out,
        )  # fmt: skip
        return out

    count = weight.numel()
    stretches = [slice(at, min(count, at + _STRETCH)) for at in range(0, count, _STRETCH)]
    error, norm, zeros = 0.0, 0.0, 0
    for out in map_threads(sums, stretches):
        its_error, its_norm, its_zeros = out.tolist()
        error, norm, zeros = error + its_error, norm + its_norm, zeros + int(its_zeros)
    return _in_squares(error, unit), _in_squares(norm, unit), zeros


def _in_squares(total: float, unit: float) -> float:
    # Not unit**2: that raises where a product becomes infinite.
    return total * unit * unit


class _Place:
    """Place at which the elements of a contiguous weight find their LUT.

    The weight is seen as ``[outer, along, inner]`` around its vector axis. The first entry of an
    element's LUT is the sum of what each of its three indices adds.

    Attributes:
        outer: ``[outer]`` int64.
        along: ``[along]`` int64.
        inner: ``[width]`` int64, or ``[1]`` where all add the same.
        outer_scale: what the indices add to the place of an element's factor, and so
            ``along_scale`` and ``inner_scale``.
        width: size of the inner index.
        dim: D, the values of an entry.
    """

    def __init__(self, palettized: PalettizedTensor) -> None:
        self.dim = palettized.cluster_dim
        scale = palettized.scale
        nothing = np.zeros(1, np.int64)
        self.outer_scale = self.along_scale = self.inner_scale = nothing
        if math.prod(palettized.grid) == self.dim == 1 and scale is None:
            # One LUT for all: a single row.
            self.outer = self.along = self.inner = nothing
            self.width = palettized.indices.numel()
            return
        layout = palettized.layout
        axis = layout.vector_axis
        if layout.cluster_dim == 1 and scale is None:
            axis = 0  # whichever is the same; this one has the longest rows
        per_table = math.prod(palettized.lut.shape[-2:])
        self.outer, self.along, self.inner = _along(layout.shape, layout.grid, per_table, axis)
        self.width = math.prod(layout.shape[axis + 1 :])
        if scale is not None:
            self.outer_scale, self.along_scale, self.inner_scale = _along(
                layout.shape, tuple(scale.shape), 1, axis
            )


def _along(shape: Shape, grid: Shape, stride: int, axis: int) -> tuple[Places, Places, Places]:
    """Return what indices before, along and after ``axis`` add to the place of a cell of a grid."""
    offsets = []
    for extent, cells in zip(reversed(shape), reversed(grid), strict=True):
        offsets.append(np.arange(extent, dtype=np.int64) // (extent // cells) * stride)
        stride *= cells
    offsets.reverse()
    inner = _sums_of(offsets[axis + 1 :])
    return _sums_of(offsets[:axis]), offsets[axis], inner if inner.any() else inner[:1]


def _sums_of(offsets: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    total = np.zeros(1, np.int64)
    for each in offsets:
        total = (total[:, None] + each).reshape(-1)
    return total


def _raw(weight: Tensor) -> NDArray[Any]:
    """Return the weight's values, or the bits of 16-bit ones, in a row."""
    flat = weight.detach().contiguous().view(-1)
    if flat.element_size() == 2:
        return flat.view(torch.int16).numpy().view(np.uint16)
    array: NDArray[Any] = flat.numpy()
    return array


@lru_cache(maxsize=2)
def _values(dtype: torch.dtype) -> NDArray[np.float32]:
    """Return the value of every pattern of a 16-bit float."""
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values: NDArray[np.float32] = patterns.view(dtype).float().numpy()
    return values


def _unit(weight: Tensor) -> float:
    """Return a power of two by which squares of float64 weights stay in range; else 1."""
    if weight.dtype != torch.float64 or weight.numel() == 0:
        return 1.0
    low, high = (float(end) for end in torch.aminmax(weight))
    return float(2.0 ** min(max(math.frexp(max(-low, high))[1], -1000), 1000))
