"""Reading at computed places, choosing, and cutting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from export_rewrites._registry import rewrites

aten = torch.ops.aten
_COREAI = "coreai-torch 0.4.3 has no lowering for it"


def static(*tensors: Tensor) -> bool:
    """Return whether all sizes are numbers."""
    return all(isinstance(size, int) for tensor in tensors for size in tensor.shape)


@rewrites(aten.unfold.default, why=_COREAI)
def unfold(a: Tensor, dimension: int, size: int, step: int) -> Any:
    """Windows, picked."""
    dim = dimension % a.dim()
    count = (a.shape[dim] - size) // step + 1
    at = torch.arange(count).unsqueeze(1) * step + torch.arange(size)
    picked = a.index_select(dim, at.reshape(-1))
    sizes = [*a.shape[:dim], count, size, *a.shape[dim + 1 :]]
    return picked.reshape(sizes).movedim(dim + 1, -1)


@rewrites(aten.diagonal.default, aten.diagonal_copy.default, why=_COREAI)
def diagonal(a: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """Picked from two axes laid out as one."""
    a = a.movedim((dim1, dim2), (-2, -1))
    rows, columns = a.shape[-2:]
    first, second = (0, offset) if offset >= 0 else (-offset, 0)
    count = max(0, min(rows - first, columns - second))
    at = torch.arange(count) * (columns + 1) + (first * columns + second)
    return a.flatten(-2).index_select(-1, at)


@rewrites(aten.as_strided.default, aten.as_strided_copy.default, why=_COREAI)
def as_strided(
    a: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Any:
    """Picked from memory in the order of the dimensions."""
    if not a.is_contiguous() or not static(a) or a.storage_offset():
        return NotImplemented
    at = torch.arange(1) + (storage_offset or 0)
    for extent, step in zip(size, stride, strict=True):
        at = at.unsqueeze(-1) + torch.arange(extent) * step
    return a.reshape(-1).index_select(0, at.reshape(-1)).reshape(list(size))


@rewrites(aten.index_select.default, why="coremltools 9.0 picks no booleans")
def index_select(a: Tensor, dim: int, index: Tensor) -> Any:
    """Of integers."""
    if a.dtype is not torch.bool:
        return NotImplemented
    return a.to(torch.int32).index_select(dim, index) != 0


def _below(a: Tensor, diagonal: int) -> Tensor:
    """Return ``[rows, columns]``: how far right of a diagonal elements are."""
    rows, columns = a.shape[-2:]
    return torch.arange(columns) - torch.arange(rows).unsqueeze(1) - diagonal


@rewrites(aten.triu.default, why="coremltools 9.0 subtracts, and so makes NaN of infinities")
def triu(a: Tensor, diagonal: int = 0) -> Any:
    """Chosen by distance from the diagonal."""
    return torch.where(_below(a, diagonal) >= 0, a, aten.full.default([], 0, dtype=a.dtype))


@rewrites(aten.tril.default, why="coremltools 9.0 subtracts, and so makes NaN of infinities")
def tril(a: Tensor, diagonal: int = 0) -> Any:
    """Chosen by distance from the diagonal."""
    return torch.where(_below(a, diagonal) <= 0, a, aten.full.default([], 0, dtype=a.dtype))


@rewrites(
    aten.constant_pad_nd.default,
    why="coremltools 9.0 takes no negative padding, and makes floats of booleans",
)
def constant_pad_nd(a: Tensor, pad: Sequence[int], value: Any = 0) -> Any:
    """Cut where padding is negative; of integers."""
    if a.dtype is torch.bool:
        whole = a.to(torch.int32)
        cut = constant_pad_nd(whole, pad, int(bool(value)))
        if cut is NotImplemented:
            cut = aten.constant_pad_nd.default(whole, pad, int(bool(value)))
        return cut != 0
    if not static(a) or all(side >= 0 for side in pad):
        return NotImplemented
    for i in range(len(pad) // 2):
        before, after = min(0, pad[2 * i]), min(0, pad[2 * i + 1])
        a = a.narrow(-1 - i, -before, a.shape[-1 - i] + before + after)
    return aten.constant_pad_nd.default(a, [max(0, side) for side in pad], value)


@rewrites(
    aten.take.default, why="torch's own decomposition of negative indices is not everywhere taken"
)
def take(a: Tensor, index: Tensor) -> Any:
    """From the tensor as one row."""
    index = torch.where(index < 0, index + a.numel(), index)
    return a.reshape(-1).index_select(0, index.reshape(-1)).reshape(index.shape)


@rewrites(
    aten.squeeze.dims,
    aten.squeeze.dim,
    why="coreai-torch 0.4.3 fails on axes that are not of size 1",
)
def squeeze(a: Tensor, dim: Sequence[int] | int) -> Any:
    """Of axes of size 1 only."""
    axes = [dim] if isinstance(dim, int) else list(dim)
    if a.dim() == 0 or all(a.shape[axis] == 1 for axis in axes):
        return NotImplemented
    left = [axis for axis in axes if a.shape[axis] == 1]
    return aten.squeeze.dims(a, left) if left else aten.clone.default(a)


@rewrites(
    aten.where.self,
    why="coremltools 9.0 declares a result of dynamic shape without looking at the condition's",
)
def where(condition: Tensor, a: Tensor, b: Tensor) -> Any:
    """Of values that are spread over the condition already."""
    values = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    if static(condition) or list(map(str, values)) == list(map(str, condition.shape)):
        return NotImplemented
    return aten.where.self(condition, _spread(a, condition), _spread(b, condition))


def _spread(a: Tensor, over: Tensor) -> Tensor:
    """Return values, bit for bit, spread over the shape of a condition as well."""
    if a.dtype is torch.bool:
        return a | (over & torch.logical_not(over))
    return a - over.to(a.dtype) * 0
