"""Reading and writing at computed places, and constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from export_rewrites._registry import rewrites

aten = torch.ops.aten
_COREAI = "coreai-torch 0.4.3 has no lowering for it"
_LACKS = "no converter of the three has it (coreai-torch 0.4.3, coremltools 9.0, OpenVINO 2026.4)"


def _static(*tensors: Tensor) -> bool:
    return all(isinstance(size, int) for tensor in tensors for size in tensor.shape)


# --- reading --------------------------------------------------------------------------------------


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
    if not a.is_contiguous() or not _static(a) or a.storage_offset():
        return NotImplemented
    at = torch.arange(1) + (storage_offset or 0)
    for extent, step in zip(size, stride, strict=True):
        at = at.unsqueeze(-1) + torch.arange(extent) * step
    return a.reshape(-1).index_select(0, at.reshape(-1)).reshape(list(size))


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


# --- writing --------------------------------------------------------------------------------------


def _hot(index: Tensor, size: int) -> Tensor:
    """Return ``[..., n, size]``: which element of an axis an index means."""
    return index.unsqueeze(-1) == torch.arange(size)


def _gathered(index: Tensor, source: Tensor, size: int, how: str, empty: float) -> Tensor:
    """Join the elements of ``source`` that one place gets; ``empty`` where there are none.

    Takes ``[..., n]`` and returns ``[..., size]``; between lies ``[..., n, size]``.
    """
    filler = aten.full.default([], empty, dtype=source.dtype)
    spread = torch.where(_hot(index, size), source.unsqueeze(-1), filler)
    if how == "sum":
        return spread.sum(-2)
    if how == "prod":
        return spread.prod(-2)
    return spread.amax(-2) if how == "amax" else spread.amin(-2)


def _fit(
    a: Tensor, dim: int, index: Tensor, source: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return tensors whose axes but ``dim``, now the last, agree; -1 is an index of nothing."""
    if a.dim() == 0 or not _static(a, index, source):
        return None
    dim %= a.dim()
    for axis, size in enumerate(index.shape):
        source = source.narrow(axis, 0, size)
    pad: list[int] = []
    for axis in reversed(range(a.dim())):
        pad += [0, 0 if axis == dim else a.shape[axis] - index.shape[axis]]
    if any(pad):
        index, source = F.pad(index, pad, value=-1), F.pad(source, pad)
    return a.movedim(dim, -1), index.movedim(dim, -1), source.movedim(dim, -1)


@rewrites(aten.scatter_add.default, why=_COREAI)
def scatter_add(a: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    """A sum over all that one place gets."""
    fitted = _fit(a, dim, index, source)
    if fitted is None:
        return NotImplemented
    a, index, source = fitted
    return (a + _gathered(index, source, a.shape[-1], "sum", 0)).movedim(-1, dim)


@rewrites(aten.scatter_reduce.two, why=_COREAI)
def scatter_reduce(
    a: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """All that one place gets, joined, and joined with what is there."""
    fitted = _fit(a, dim, index, source)
    if fitted is None or not a.is_floating_point():
        return NotImplemented
    a, index, source = fitted
    low, high = torch.finfo(a.dtype).min, torch.finfo(a.dtype).max
    how = "sum" if reduce == "mean" else reduce
    empty = {"sum": 0.0, "prod": 1.0, "amax": low, "amin": high}[how]
    came = _gathered(index, source, a.shape[-1], how, empty)
    count = _hot(index, a.shape[-1]).to(a.dtype).sum(-2)
    joins: dict[str, Any] = {
        "sum": torch.add,
        "prod": torch.mul,
        "amax": torch.maximum,
        "amin": torch.minimum,
    }
    made = joins[how](a, came) if include_self else torch.where(count > 0, came, a)
    if reduce == "mean":
        by = count + 1 if include_self else torch.where(count > 0, count, torch.ones_like(count))
        made = made / by
    return made.movedim(-1, dim)


def _rows_added(a: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Add ``rows [n, r]`` to those of ``a [size, r]`` that ``index [n]`` names."""
    hot = _hot(index, a.shape[0])
    if a.is_floating_point():
        return a + hot.to(a.dtype).t() @ rows
    return a + torch.where(
        hot.unsqueeze(-1), rows.unsqueeze(1), torch.zeros_like(rows[:1, None])
    ).sum(0)


@rewrites(aten.index_add.default, why="coreai-torch 0.4.3 does not accumulate; OpenVINO lacks it")
def index_add(a: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Any:
    """A product with the matrix of who gets what."""
    if a.dim() == 0 or not _static(a, source):
        return NotImplemented
    moved, rows = a.movedim(dim, 0), source.movedim(dim, 0)
    rows = rows if alpha == 1 else rows * alpha
    made = _rows_added(
        moved.reshape(moved.shape[0], -1), index.reshape(-1), rows.reshape(rows.shape[0], -1)
    )
    return made.reshape(moved.shape).movedim(0, dim)


@rewrites(
    aten.index_put.default,
    why="coreai-torch 0.4.3 does not accumulate, coremltools 9.0 spreads no single value",
)
def index_put(
    a: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    """With accumulation, a product with the matrix of who gets what."""
    if not accumulate:
        if values.dim():
            return NotImplemented
        places = aten.index.Tensor(a, indices)
        return aten.index_put.default(a, indices, values.expand(places.shape))
    if not _static(a, values):
        return NotImplemented
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    axes = [axis for axis, _ in given]
    if any(index.dtype is torch.bool for _, index in given):
        return NotImplemented
    others = [axis for axis in range(a.dim()) if axis not in axes]
    sizes = [a.shape[axis] for axis in axes]
    flat = torch.zeros_like(given[0][1])
    for (_, index), size in zip(given, sizes, strict=True):
        flat = flat * size + torch.where(index < 0, index + size, index)
    # torch puts the indexed axes where the first was, or in front if they are apart.
    together = axes == list(range(axes[0], axes[0] + len(axes)))
    first = axes[0] if together else 0
    rest = [a.shape[axis] for axis in others]
    values = values.expand([*rest[:first], *flat.shape, *rest[first:]])
    values = values.movedim(list(range(first, first + flat.dim())), list(range(flat.dim())))
    moved = a.permute(*axes, *others)
    made = _rows_added(
        moved.reshape(math.prod(sizes), -1), flat.reshape(-1), values.reshape(flat.numel(), -1)
    )
    back = [(axes + others).index(axis) for axis in range(a.dim())]
    return made.reshape(moved.shape).permute(back)


@rewrites(
    aten.index_fill.int_Scalar, why="coremltools 9.0 has no conversion for it, nor for torch's own"
)
def index_fill(a: Tensor, dim: int, index: Tensor, number: Any) -> Any:
    """Chosen by who is named."""
    shape = [1] * a.dim()
    shape[dim] = a.shape[dim]
    named = _hot(index, a.shape[dim]).any(0).reshape(shape)
    return torch.where(named, aten.full.default([], number, dtype=a.dtype), a)


@rewrites(aten.constant_pad_nd.default, why="coremltools 9.0 takes no negative padding")
def constant_pad_nd(a: Tensor, pad: Sequence[int], value: Any = 0) -> Any:
    """Cut where padding is negative."""
    if not _static(a) or all(side >= 0 for side in pad):
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


# --- look-ups -------------------------------------------------------------------------------------


@rewrites(aten.embedding_renorm.default, why=_LACKS)
def embedding_renorm(weight: Tensor, index: Tensor, max_norm: float, norm_type: float) -> Any:
    """Rows that are too long, shortened; those that nothing looks up keep their length unseen."""
    del index
    length = torch.linalg.vector_norm(weight, norm_type, dim=-1, keepdim=True)
    return torch.where(length > max_norm, weight * (max_norm / (length + 1e-7)), weight)


@rewrites(aten._embedding_bag.default, aten._embedding_bag_forward_only.default, why=_LACKS)
def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Any:
    """A product with the matrix of who belongs to which bag; of sums and means."""
    del scale_grad_by_freq, sparse
    if mode == 2 or padding_idx != -1:
        return NotImplemented
    place = torch.arange(indices.shape[0]).unsqueeze(0)
    start = (offsets[:-1] if include_last_offset else offsets).unsqueeze(1)
    end = offsets[1:] if include_last_offset else F.pad(offsets[1:], (0, 1), value=indices.shape[0])
    member = ((place >= start) & (place < end.unsqueeze(1))).to(weight.dtype)
    rows = F.embedding(indices, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    bags = member @ rows
    if mode == 1:
        bags = bags / member.sum(-1, keepdim=True).clamp(min=1)
    return bags, torch.zeros_like(indices), torch.zeros_like(offsets), torch.zeros_like(offsets)


@rewrites(aten._trilinear.default, why=_LACKS)
def trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Any:
    """A product of three, summed."""
    del unroll_dim
    for axis in expand1:
        a = a.unsqueeze(axis)
    for axis in expand2:
        b = b.unsqueeze(axis)
    for axis in expand3:
        c = c.unsqueeze(axis)
    return (a * b * c).sum(list(sumdim))


@rewrites(aten.mv.default, why="coremltools 9.0 and coreai-torch 0.4.3 multiply matrices only")
def mv(matrix: Tensor, vector: Tensor) -> Any:
    """With a matrix of one column."""
    return torch.mm(matrix, vector.unsqueeze(1)).squeeze(1)


@rewrites(aten.matmul.default, why="coremltools 9.0 fails on vectors behind a matrix")
def matmul(a: Tensor, b: Tensor) -> Any:
    """Vectors as matrices."""
    if a.dim() > 1 and b.dim() > 1:
        return NotImplemented
    left, right = a.unsqueeze(0) if a.dim() == 1 else a, b.unsqueeze(1) if b.dim() == 1 else b
    made = aten.matmul.default(left, right)
    made = made.squeeze(-1) if b.dim() == 1 else made
    return made.squeeze(-1 if b.dim() == 1 else -2) if a.dim() == 1 else made


@rewrites(aten.addmv.default, why=_COREAI)
def addmv(a: Tensor, matrix: Tensor, vector: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """A product and a sum."""
    return a * beta + (matrix @ vector.unsqueeze(-1)).squeeze(-1) * alpha
