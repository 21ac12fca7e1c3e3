"""The one module that makes constants of OpenVINO.

``ov.Tensor`` does not own the array it is made of, so `Constants` keeps the arrays of a model
for as long as it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch
from openvino import Shape, Type
from openvino import opset16 as op
from torch import Tensor

from palette_core.tensors import unpack_indices

Output = Any  # of a node
Array = npt.NDArray[Any]

TYPES = {
    torch.float64: Type.f64,
    torch.float32: Type.f32,
    torch.float16: Type.f16,
    torch.bfloat16: Type.bf16,
    torch.float8_e4m3fn: Type.f8e4m3,
    torch.float8_e5m2: Type.f8e5m2,
    torch.int64: Type.i64,
    torch.int32: Type.i32,
    torch.int16: Type.i16,
    torch.int8: Type.i8,
    torch.uint8: Type.u8,
    torch.bool: Type.boolean,
}


class Constants:
    """Makes the constants of one model, and keeps their arrays."""

    def __init__(self) -> None:
        self._kept: list[Array] = []

    def tensor(self, tensor: Tensor) -> Output:
        """Return a constant of a tensor, its bytes as they are."""
        shape, kind = Shape(list(tensor.shape)), TYPES[tensor.dtype]
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return self._constant(flat.view(torch.uint8).numpy(), shape, kind)

    def indices(self, packed: Tensor, shape: Sequence[int], n_bits: int) -> Output:
        """Return a constant of unsigned ``n_bits``-bit integers.

        Args:
            packed: 1-D uint8, a little-endian stream. Of 2, 4 and 8 bits OpenVINO stores the same
                bytes, and the memory is not copied.
            shape: of the integers.
            n_bits: 1, 2, 3, 4, 6 or 8.
        """
        array = packed.numpy()
        if n_bits not in (2, 4, 8):
            codes = unpack_indices(packed, n_bits, int(np.prod(shape))).numpy()
            array = _PACKERS[n_bits](codes)
        return self._constant(array, Shape(list(shape)), getattr(Type, f"u{n_bits}"))

    def bits(self, mask: Tensor) -> Output:
        """Return a constant of one bit for each of ``mask``, bool."""
        return self._constant(np.packbits(mask.numpy()), Shape(list(mask.shape)), Type.u1)

    def _constant(self, array: Array, shape: Shape, kind: Type) -> Output:
        self._kept.append(array)
        return ov.op.Constant(ov.Tensor(array, shape, kind)).output(0)


def integers(*values: int) -> Output:
    """Return a constant of a list of integers: sizes, axes, an order of axes."""
    return op.constant(np.array(values, np.int64)).output(0)


def scalar(value: int) -> Output:
    """Return a constant of one int32."""
    return op.constant(np.array(value, np.int32)).output(0)


def number(value: float, kind: Type) -> Output:
    """Return a constant of one float, in a dtype."""
    return op.convert(op.constant(np.array(value, np.float32)), kind).output(0)


def _one_bit(codes: Array) -> Array:
    return np.packbits(codes)


def _three_bits(codes: Array) -> Array:
    """Eight values in three bytes: four times two low bits, twice, then the eight high bits."""
    v = np.pad(codes, (0, -codes.size % 8)).reshape(-1, 8)
    low, high = v & 3, v >> 2
    first = low[:, 0] << 6 | low[:, 1] << 4 | low[:, 2] << 2 | low[:, 3]
    second = low[:, 4] << 6 | low[:, 5] << 4 | low[:, 6] << 2 | low[:, 7]
    return np.stack([first, second, np.packbits(high, axis=1)[:, 0]], 1).reshape(-1)


def _six_bits(codes: Array) -> Array:
    """Four values in three bytes: two times four low bits, twice, then four times two high bits."""
    v = np.pad(codes, (0, -codes.size % 4)).reshape(-1, 4)
    low, high = v & 15, v >> 4
    first, second = low[:, 0] << 4 | low[:, 1], low[:, 2] << 4 | low[:, 3]
    third = high[:, 0] << 6 | high[:, 1] << 4 | high[:, 2] << 2 | high[:, 3]
    return np.stack([first, second, third], 1).reshape(-1)


_PACKERS = {1: _one_bit, 3: _three_bits, 6: _six_bits}
