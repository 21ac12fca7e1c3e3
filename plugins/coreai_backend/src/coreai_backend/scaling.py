"""Steps of decoding behind a look-up: quantized entries, and factors of channels or blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coreai_backend import ir
from palette_core.tensors import StoredTensor


def dequantized(data: ir.Value, name: str, weight: StoredTensor, grid: Sequence[int]) -> ir.Value:
    """Emit what quantized entries stand for, in the dtype of the weight.

    Args:
        data: the entries, looked up or not.
        name: of the weight.
        weight: with a ``lut_scale``.
        grid: of scales and zero points, of the rank of ``data``.
    """
    scale, zero_point, lut = weight.lut_scale, weight.lut_zero_point, weight.lut
    assert scale is not None
    made = ir.shift_scale(
        data,
        ir.constant(scale.to(torch.float32).reshape(tuple(grid)), f"{name}.lut_scale"),
        ir.zeros(grid, lut.dtype)
        if zero_point is None
        else ir.constant(zero_point.reshape(tuple(grid)), f"{name}.lut_zero_point"),
        ir.zeros(grid, torch.float32),
    )
    return made if weight.dtype is torch.float32 else ir.cast(made, weight.dtype)


def scaled(dense: ir.Value, name: str, weight: StoredTensor) -> ir.Value:
    """Emit a weight multiplied with its factors, where it has any."""
    if weight.scale is None:
        return dense
    zero = ir.zeros(weight.scale.shape, weight.dtype)
    factor = ir.constant(weight.scale.to(weight.dtype), f"{name}.scale")
    return ir.shift_scale(dense, factor, zero, zero)
