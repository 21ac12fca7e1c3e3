"""The one torch operator that stands for a palettized weight inside a model or a graph.

``palette_core::depalettize`` survives eager execution, ``torch.export`` and ``torch.jit.trace``;
export backends lower it to their runtime's own look-up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from palette_core.tensors.packing import unpack_indices
from palette_core.tensors.palettized import PalettizedTensor

OP_NAME = "palette_core::depalettize"


@torch.library.custom_op(OP_NAME, mutates_args=())
def depalettize(
    indices: Tensor,
    lut: Tensor,
    index_shape: list[int],
    n_bits: int,
    axis: int,
    dtype: torch.dtype,
    lut_scale: Tensor | None = None,
    lut_zero_point: Tensor | None = None,
    scale: Tensor | None = None,
    lut_dtype: torch.dtype | None = None,
) -> Tensor:
    """Decode packed indices and look-up tables into a dense weight.

    Args:
        indices: 1-D uint8, a little-endian bit stream of ``n_bits``-bit indices.
        lut: ``[*grid, 2 ** n_bits, D]``, floating or quantized.
        index_shape: shape of the unpacked indices.
        n_bits: bits per index.
        axis: the axis along which the D values of an entry lie.
        dtype: floating dtype of the result.
        lut_scale: ``[*grid, 1, 1]`` float32 where the LUT is quantized.
        lut_zero_point: ``[*grid, 1, 1]``, in the LUT's dtype.
        scale: factor per output channel, broadcastable to the result.
        lut_dtype: 8-bit dtype of the quantized entries, where ``lut`` and ``lut_zero_point`` hold
            their bytes as uint8; None where they are in their own dtype.

    Returns:
        The weight: ``index_shape`` with ``axis`` multiplied by D.
    """
    if lut_dtype is not None:
        lut = lut.view(lut_dtype)
        lut_zero_point = None if lut_zero_point is None else lut_zero_point.view(lut_dtype)
    count = math.prod(index_shape)
    return PalettizedTensor(
        unpack_indices(indices, n_bits, count).reshape(index_shape),
        lut,
        n_bits,
        axis,
        dtype,
        lut_scale,
        lut_zero_point,
        scale,
    ).decode()


@depalettize.register_fake
def _(
    indices: Tensor,
    lut: Tensor,
    index_shape: list[int],
    n_bits: int,
    axis: int,
    dtype: torch.dtype,
    lut_scale: Tensor | None = None,
    lut_zero_point: Tensor | None = None,
    scale: Tensor | None = None,
    lut_dtype: torch.dtype | None = None,
) -> Tensor:
    del indices, n_bits, lut_scale, lut_zero_point, scale, lut_dtype
    shape = [s * lut.shape[-1] if i == axis else s for i, s in enumerate(index_shape)]
    return lut.new_empty(shape, dtype=dtype)
