"""Scales of channels and blocks, folded into tables or into the scale of 8-bit entries.

Programs for iOS 26 scale what is looked up, and of tables of floats those are floats, which the
Neural Engine is reported to refuse (coremltools' pull request 2688). Folded, no floats are scaled:

* a table of floats becomes one table for each channel, as for iOS 18;
* 8-bit entries have one scale in the place of two, on a grid fine enough for both.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from palette_core.errors import BackendError
from palette_core.tensors import BlockLayout, PalettizedTensor


def size_with_a_table_per_channel(layout: BlockLayout, n_bits: int, dtype: torch.dtype) -> float:
    """Return the size of indices and tables once scales are folded in, in sizes of the weight."""
    cells = list(layout.grid)
    cells[layout.vector_axis] = layout.index_shape[layout.vector_axis]
    width = dtype.itemsize * 8
    tables = math.prod(cells) * (1 << n_bits) * layout.cluster_dim * width
    return (math.prod(layout.index_shape) * n_bits + tables) / (math.prod(layout.shape) * width)


def fold_scale(palettized: PalettizedTensor) -> PalettizedTensor:
    """Return the same weight without a scale: each channel has a table of its own.

    The products are those of `PalettizedTensor.decode`, so decoding gives the same bits.

    Raises:
        BackendError: the tables are integers, or would make the weight no smaller than dense.
    """
    scale = palettized.scale
    if scale is None:
        return palettized
    if any(got not in (1, n) for got, n in zip(scale.shape, palettized.shape, strict=True)):
        raise BackendError(
            "scales per block of inputs cannot be multiplied into tables; set the deployment "
            "target to iOS26"
        )
    if palettized.lut_scale is not None:
        raise BackendError(
            "a scale per channel cannot be multiplied into tables of integers; leave either out, "
            "or set the deployment target to iOS26"
        )
    ratio = size_with_a_table_per_channel(palettized.layout, palettized.n_bits, palettized.dtype)
    if ratio >= 1:
        raise BackendError(
            f"with a scale per channel each channel needs a table of its own, {ratio:.2f} times "
            "the dense weight in all; leave the scale out, or set the deployment target to iOS26"
        )
    lut, axis, dim = palettized.lut, palettized.axis, palettized.cluster_dim
    factors = scale
    for at, (extent, cells) in enumerate(zip(palettized.shape, palettized.grid, strict=True)):
        if scale.shape[at] > 1:
            # From here on there is one table for each index along this axis.
            count = extent // dim if at == axis else extent
            lut = lut.repeat_interleave(count // cells, at)
    # [..., channels, ...] -> [*grid, 1, D]: the D values of an entry lie along ``axis``.
    if scale.shape[axis] > 1:
        apart = scale.reshape(*scale.shape[:axis], -1, dim, *scale.shape[axis + 1 :])
        factors = apart.movedim(axis + 1, -1).unsqueeze(-2)
    else:
        factors = scale[..., None, None]
    return replace(palettized, lut=lut * factors, scale=None)


def one_scale(palettized: PalettizedTensor) -> tuple[Tensor, Tensor | None]:
    """Return what 8-bit entries are scaled with once, and their zero points.

    Args:
        palettized: with 8-bit tables and a scale.

    Returns:
        Both of the weight's rank, with extents that those of the tables' grid and of the scale
        divide; the scale is in the weight's dtype: the product of both, rounded once.
    """
    p = palettized
    assert p.lut_scale is not None
    assert p.scale is not None
    cells = tuple(map(math.lcm, p.grid, p.scale.shape))
    of_tables = _spread(p.lut_scale.reshape(p.grid), cells)
    scale = (of_tables * _spread(p.scale.float(), cells)).to(p.dtype)
    zero = p.lut_zero_point
    return scale, None if zero is None else _spread(zero.reshape(p.grid), cells)


def without_scales_of_floats(palettized: PalettizedTensor) -> PalettizedTensor:
    """Return the same weight with tables of floats, one for each channel where it has scales.

    Raises:
        BackendError: as of `fold_scale`.
    """
    p = palettized
    if p.scale is None:
        return p
    if p.lut_scale is not None:
        lut = p.codebook().lut.reshape(p.lut.shape).to(p.dtype)
        p = replace(p, lut=lut, lut_scale=None, lut_zero_point=None)
    return fold_scale(p)


def folded_values(palettized: PalettizedTensor, dtype: torch.dtype) -> Tensor:
    """Return the weight as a folded form decodes to, computed in ``dtype``.

    Raises:
        BackendError: as of `fold_scale`.
    """
    p = palettized
    if p.lut_scale is None or p.scale is None:
        return fold_scale(p).decode().to(dtype)
    scale, zero = one_scale(p)
    plain = replace(
        p, lut=p.lut.to(dtype), lut_scale=None, lut_zero_point=None, scale=None, dtype=dtype
    )
    integers = plain.decode()
    if zero is not None:
        integers = integers - _spread(zero, p.shape).to(dtype)
    return integers * _spread(scale, p.shape).to(dtype)


def _spread(cells: Tensor, extents: tuple[int, ...]) -> Tensor:
    for axis, extent in enumerate(extents):
        cells = cells.repeat_interleave(extent // cells.shape[axis], axis)
    return cells
