"""Products with packed weights on the CPU, without the dense weight, and quick decoding.

A few inputs are multiplied with a row of the weight as soon as its indices are looked up; for more
of them some rows are decoded at a time, few enough to stay in the cache, and torch multiplies.
What the kernels do not take gives None, and is for `PalettizedTensor.decode`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from palette_core._common.kernels import may_compile
from palette_core._common.threads import spread
from palette_core.tensors._product_kernel import decode_rows, multiply_rows
from palette_core.tensors.codebook import dequantize_lut
from palette_core.tensors.layout import Shape
from palette_core.tensors.packing import packed_size
from palette_core.tensors.stored import StoredTensor

_FEW = 4  # inputs; with more, torch's products of decoded rows are faster
_SMALL = 1 << 14  # values that are decoded as quickly, for torch to multiply them as ever
_TILE = 1 << 20  # values decoded before they are multiplied
_PART = 1 << 20  # values to look up, and products, that are worth another thread
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Sizes = np.ndarray[tuple[int], np.dtype[np.int64]]
"""Sizes of a weight as kernels read them, all of its axes but the first as one.

Indices of a row; segments of a row, each with one table and one factor; D; whether the D values of
an entry lie in neighbouring rows; elements from one of them to the next; rows that share tables,
tables along a row; rows that share factors, factors along a row (none without a scale).
"""


@functools.lru_cache(maxsize=256)
def _sizes(
    index_shape: Shape,
    axis: int,
    lut_shape: Shape,
    n_bits: int,
    dtype: torch.dtype,
    scale: Shape | None,
) -> Sizes | None:
    """Return what kernels are told, or None of a weight that they do not take.

    They check nothing: what does not fit would have them read memory of others.
    """
    rank = len(index_shape)
    factors = (1,) * rank if scale is None else scale
    if dtype not in _DTYPES or axis not in (0, 1) or n_bits not in range(1, 9) or rank < 2:
        return None
    if len(lut_shape) != rank + 2 or len(factors) != rank or lut_shape[-2] != 1 << n_bits:
        return None
    if min(*index_shape, *lut_shape, *factors) < 1:
        return None
    grid, dim = lut_shape[:-2], lut_shape[-1]
    if math.prod(grid[2:]) * math.prod(factors[2:]) > 1:
        return None
    rows = index_shape[0] * (dim if axis == 0 else 1)
    segments = math.lcm(grid[1], factors[1])
    if index_shape[0] % grid[0] or rows % factors[0] or index_shape[1] % segments:
        return None
    per_row, inner = math.prod(index_shape[1:]), math.prod(index_shape[2:])
    return np.array(
        [
            *(per_row, segments, dim, axis == 0, inner, rows // grid[0], grid[1]),
            *(rows // factors[0], factors[1] if scale else 0),
        ],
        np.int64,
    )


@final
class Packed:
    """A packed weight as the kernels read it: flat arrays that share its memory where they can."""

    def __init__(self, stored: StoredTensor, entries: Tensor, sizes: Sizes) -> None:
        self.n_bits, self.dtype, self.sizes = stored.n_bits, stored.dtype, sizes
        self.rows = stored.shape[0]
        self.columns = math.prod(stored.shape[1:])
        self.indices = _flat(stored.parts["indices"])
        self.luts, self.factors = _flat(entries.to(torch.float32)), _NOTHING
        self.decoded, self._words = torch.float32, self.luts
        if stored.scale is not None:
            self.factors = _flat(stored.scale.to(torch.float32))
        elif stored.dtype is not torch.float32:
            self.decoded, self._words = stored.dtype, _flat(entries.view(torch.uint16))

    @classmethod
    def of(cls, stored: StoredTensor) -> Packed | None:
        """Return a weight as the kernels read it, or None where they do not take it."""
        scale, lut, indices = stored.scale, stored.lut, stored.parts["indices"]
        if not may_compile() or indices.dtype is not torch.uint8:
            return None
        if scale is not None and not (
            scale.dtype is stored.dtype or (scale.dtype, stored.dtype) == _WIDENED
        ):
            return None
        tensors = (indices, lut, stored.lut_scale, stored.lut_zero_point, scale)
        if not all(part is None or _is_plain(part) for part in tensors):
            return None
        if indices.numel() != packed_size(stored.index_count, stored.n_bits):
            return None
        sizes = _sizes(
            tuple(stored.index_shape),
            stored.axis,
            tuple(lut.shape),
            stored.n_bits,
            stored.dtype,
            None if scale is None else tuple(scale.shape),
        )
        if sizes is None:
            return None
        entries = _entries(stored)
        return cls(stored, entries, sizes) if entries.shape == lut.shape else None

    def decode(self, rows: Tensor | None, out: Tensor) -> Tensor:
        """Decode rows in place.

        Args:
            rows: int64 ``[R]`` numbers of rows; None is all.
            out: ``decoded`` ``[R, columns]``: float32, but the weight's dtype where no scale
                multiplies entries, which are copied then as words that nobody reads.
        """
        numbers = np.arange(self.rows) if rows is None else rows.numpy()
        kernel = decode_rows(self.n_bits)
        target = _flat(out if out.dtype is torch.float32 else out.view(torch.uint16))
        given = (self.indices, self._words, self.factors, numbers, self.sizes, target)
        _by_parts(lambda a, b: kernel(*given, a, b), len(numbers), self.columns)
        return out

    def tiles(self) -> list[slice]:
        """Return rows that are decoded together."""
        step = max(1, _TILE // self.columns)
        return [slice(at, min(at + step, self.rows)) for at in range(0, self.rows, step)]


_NOTHING = np.zeros(0, np.float32)
_WIDENED = (torch.float16, torch.float32)  # dtypes of a scale and of its weight


def decode(stored: StoredTensor) -> Tensor | None:
    """Return the dense weight, as `PalettizedTensor.decode` does, or None."""
    packed = Packed.of(stored)
    if packed is None:
        return None
    out = _room(packed.rows, packed.columns, stored.dtype)
    if packed.decoded is stored.dtype:
        return packed.decode(None, out).view(stored.shape)
    numbers = _count(packed.rows)
    for part in packed.tiles():
        tile = _room(part.stop - part.start, packed.columns)
        out[part] = packed.decode(numbers[part], tile)
    return out.view(stored.shape)


def linear(x: Tensor, stored: StoredTensor, bias: Tensor | None) -> Tensor | None:
    """Return ``x @ weight.T + bias``, or None.

    Args:
        x: ``[..., in]`` in the weight's dtype.
        stored: of ``[out, in]``.
        bias: ``[out]``, or None.
    """
    if not (_is_plain(x) and (bias is None or _is_plain(bias))):
        return None
    packed = Packed.of(stored)
    if packed is None or x.numel() == 0 or len(stored.index_shape) != 2:
        return None
    if x.dtype is not stored.dtype or x.shape[-1:] != (packed.columns,):
        return None  # torch says what is wrong
    if bias is not None and (bias.dtype is not stored.dtype or bias.shape != (packed.rows,)):
        return None
    given = None if bias is None else bias.detach()
    count, size = x.numel() // packed.columns, packed.rows * packed.columns
    # The values of a scaled weight of half precision are rounded, each: those are decoded.
    exact = stored.scale is None or stored.dtype is torch.float32
    few = count <= _FEW and size > _SMALL and exact
    if not few and len(packed.tiles()) == 1:
        weight = packed.decode(None, _room(packed.rows, packed.columns, packed.decoded))
        return torch.nn.functional.linear(x, weight.to(stored.dtype), given)
    out = (_few if few else _many)(x.reshape(-1, packed.columns), packed, given)
    return out.view(*x.shape[:-1], packed.rows)


def embedding(indices: Tensor, stored: StoredTensor) -> Tensor | None:
    """Return the rows of a weight ``[count, values]`` that integers pick, or None."""
    packed = Packed.of(stored) if _is_plain(indices) else None
    if packed is None or indices.numel() == 0 or len(stored.index_shape) != 2:
        return None
    numbers = indices.reshape(-1).to(torch.int64)
    low, high = torch.aminmax(numbers)
    if int(low) < 0 or int(high) >= packed.rows:
        return None  # torch says what is wrong
    out = packed.decode(numbers, _room(len(numbers), packed.columns, packed.decoded))
    return out.to(stored.dtype).view(*indices.shape, packed.columns)


def _few(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    per_row, _, dim, across = (int(size) for size in packed.sizes[:4])
    x = x.to(torch.float32)
    if dim > 1 and not across:
        x = x.reshape(-1, per_row, dim).transpose(1, 2)
    out = _room(len(x), packed.rows)
    target, kernel = out.numpy(), multiply_rows(packed.n_bits)
    given = (packed.indices, packed.luts, packed.factors, _flat(x), packed.sizes, target)
    _by_parts(lambda a, b: kernel(*given, a, b), packed.rows, packed.columns * len(x))
    if bias is not None:
        out += bias
    return out.to(packed.dtype)


def _many(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    numbers, tiles = _count(packed.rows), packed.tiles()
    out = _room(len(x), packed.rows, packed.dtype)
    room = _room(tiles[0].stop, packed.columns, packed.decoded)
    for part in tiles:
        tile = packed.decode(numbers[part], room[: part.stop - part.start]).to(packed.dtype)
        if bias is None:
            torch.mm(x, tile.T, out=out[:, part])
        else:
            torch.addmm(bias[part], x, tile.T, out=out[:, part])
    return out


def _by_parts(run: Callable[[int, int], Any], rows: int, work: int) -> None:
    """Call a kernel for all rows, on several threads where that pays."""
    count = min(rows, rows * work // _PART + 1, torch.get_num_threads())
    if count <= 1:
        run(0, rows)
        return
    ends = [rows * i // count for i in range(count + 1)]
    spread(lambda part: run(*part), list(itertools.pairwise(ends)))


def _entries(stored: StoredTensor) -> Tensor:
    typed = stored.typed()
    entries = dequantize_lut(typed.lut, typed.lut_scale, typed.lut_zero_point)
    return entries.to(stored.dtype)


def _room(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return memory for values, whatever dtype and device torch's defaults are set to."""
    return torch.empty((rows, columns), dtype=dtype, device="cpu")


def _count(stop: int) -> Tensor:
    return torch.arange(stop, dtype=torch.int64, device="cpu")


def _flat(tensor: Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = tensor.detach().reshape(-1).contiguous().numpy()
    return found


def _is_plain(tensor: Tensor) -> bool:
    """Return whether numpy may read a tensor: values in the CPU's memory, as they are."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_neg()
    )
