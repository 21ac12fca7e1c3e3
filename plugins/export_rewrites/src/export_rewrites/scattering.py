"""Writing at computed places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from export_rewrites._registry import rewrites
from export_rewrites.indexing import static

aten = torch.ops.aten
_COREAI = "coreai-torch 0.4.3 has no lowering for it"


def hot(index: Tensor, size: int) -> Tensor:
    """Return ``[..., n, size]``: which element of an axis an index means."""
    return index.unsqueeze(-1) == torch.arange(size)


def _gathered(index: Tensor, source: Tensor, size: int, how: str, empty: float) -> Tensor:
    """Join the elements of ``source`` that one place gets; ``empty`` where there are none.

    Takes ``[..., n]`` and returns ``[..., size]``; between lies ``[..., n, size]``.
    """
    filler = aten.full.default([], empty, dtype=source.dtype)
    spread = torch.where(hot(index, size), source.unsqueeze(-1), filler)
    if how == "sum":
        return spread.sum(-2)
    if how == "prod":
        return spread.prod(-2)
    return spread.amax(-2) if how == "amax" else spread.amin(-2)


def _fit(
    a: Tensor, dim: int, index: Tensor, source: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return tensors whose axes but ``dim``, now the last, agree; -1 is an index of nothing."""
    if a.dim() == 0 or not static(a, index, source):
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


def _ranked(mask: Tensor, values: Tensor) -> Tensor:
    """Return for each element of a flat mask the row of ``values`` that is its, in their order."""
    rank = torch.cumsum(mask.to(torch.int64), 0) - 1
    more = torch.cat([values, torch.zeros_like(values.sum(0, keepdim=True))])  # there may be none
    return more.index_select(0, rank.clamp(min=0))


@rewrites(aten.masked_scatter.default, why="coremltools 9.0 has no conversion for it")
def masked_scatter(a: Tensor, mask: Tensor, source: Tensor) -> Any:
    """Chosen by the mask, elements of the source by their rank."""
    shape = torch.broadcast_shapes(a.shape, mask.shape)  # type: ignore[no-untyped-call]
    a, flat = a.expand(shape), mask.expand(shape).reshape(-1)
    picked = _ranked(flat, source.reshape(-1))
    return torch.where(flat, picked, a.reshape(-1)).reshape(a.shape)


def _put_by_mask(a: Tensor, mask: Tensor, values: Tensor, first: int) -> Any:
    """Write rows where a mask, over the axes from ``first`` on, is true; in their order."""
    if first:
        return NotImplemented
    n = mask.dim()
    rest = a.shape[n:]
    flat, rows = mask.reshape(-1), a.reshape([-1, *rest])
    chosen = flat.reshape([-1] + [1] * len(rest))
    count: Any = values.shape[0] if values.dim() == len(rest) + 1 else 1
    if isinstance(count, int) and count == 1:
        return torch.where(chosen, values, rows).reshape(a.shape)
    values = values.expand([count, *rest])
    return torch.where(chosen, _ranked(flat, values), rows).reshape(a.shape)


@rewrites(aten.scatter.value, why="coremltools 9.0 wants equal dtypes")
def scatter_number(a: Tensor, dim: int, index: Tensor, value: Any) -> Any:
    """Of a tensor of one number."""
    if not static(index):
        return NotImplemented
    return torch.scatter(a, dim, index, aten.full.default(list(index.shape), value, dtype=a.dtype))


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
    count = hot(index, a.shape[-1]).to(a.dtype).sum(-2)
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
    named = hot(index, a.shape[0])
    if a.is_floating_point():
        return a + named.to(a.dtype).t() @ rows
    return a + torch.where(
        named.unsqueeze(-1), rows.unsqueeze(1), torch.zeros_like(rows[:1, None])
    ).sum(0)


@rewrites(aten.index_add.default, why="coreai-torch 0.4.3 does not accumulate; OpenVINO lacks it")
def index_add(a: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Any:
    """A product with the matrix of who gets what."""
    if a.dim() == 0 or not static(a, source):
        return NotImplemented
    moved, rows = a.movedim(dim, 0), source.movedim(dim, 0)
    rows = rows if alpha == 1 else rows * alpha
    made = _rows_added(
        moved.reshape(moved.shape[0], -1), index.reshape(-1), rows.reshape(rows.shape[0], -1)
    )
    return made.reshape(moved.shape).movedim(0, dim)


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype is torch.bool


def _latest(named: Tensor) -> Tensor:
    """Return ``[..., size]``: the last of n that names a place, counted from 1; 0 if none does.

    Takes ``[..., n, size]``, see `hot`.
    """
    order = (torch.arange(named.shape[-2]) + 1).unsqueeze(-1)
    return torch.where(named, order, torch.zeros_like(order)).amax(-2)


@rewrites(
    aten.scatter.src, why="coremltools 9.0 fails on a dynamic number of values (an assertion)"
)
def scatter(a: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    """Chosen by who is named, the last value where a place is named more than once."""
    if static(a, index, source) or a.dim() == 0:
        return NotImplemented
    dim %= a.dim()
    others = [axis for axis in range(a.dim()) if axis != dim]
    sizes = [[str(t.shape[axis]) for axis in others] for t in (a, index, source)]
    if not isinstance(a.shape[dim], int) or sizes.count(sizes[0]) != len(sizes):
        return NotImplemented
    latest = _latest(hot(index.movedim(dim, -1), a.shape[dim])).movedim(-1, dim)
    return torch.where(latest > 0, source.gather(dim, (latest - 1).clamp(min=0)), a)


def _put_rows(a: Tensor, dim: int, index: Tensor, values: Tensor) -> Any:
    """Write at places of one axis, the last value where a place is named more than once.

    Takes ``index [n]``, and values that spread to the shape of ``a`` with n places on that axis;
    n may be dynamic.
    """
    if index.dim() != 1 or values.dim() > a.dim():
        return NotImplemented
    values = values[(None,) * (a.dim() - values.dim())]
    size: Any = a.shape[dim]
    count: Any = index.shape[0]
    if not isinstance(size, int) or (isinstance(count, int) and count == 0):
        return NotImplemented
    named = hot(torch.where(index < 0, index + size, index), size)
    latest = _latest(named)
    if str(values.shape[dim]) == "1":  # no question to dynamic sizes
        picked = values
    else:
        picked = values.index_select(dim, (latest - 1).clamp(min=0))
    shape = [1] * a.dim()
    shape[dim] = size
    return torch.where((latest > 0).reshape(shape), picked, a)


def _put(a: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Any:
    """Write, the last value where a place is named more than once."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    axis, index = given[0]
    if any(_is_mask(index) for _, index in given):
        return _put_by_mask(a, index, values, axis) if len(given) == 1 else NotImplemented
    if axis and len(given) == 1:
        return _put_rows(a, axis, index, values)
    if values.dim():
        return NotImplemented
    places = aten.index.Tensor(a, indices)
    return aten.index_put.default(a, indices, values.expand(places.shape))


@rewrites(
    aten.index_put.default,
    why="coreai-torch 0.4.3 does not accumulate, writes other rows by masks, and none of dynamic "
    "number behind the first axis; coremltools 9.0 spreads no single value, and wants indices of "
    "the first axes",
)
def index_put(
    a: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    """Chosen by who is named; with accumulation, a product with the matrix of who gets what."""
    if not accumulate:
        return _put(a, indices, values)
    if not static(a, values):
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
    named = hot(index, a.shape[dim]).any(0).reshape(shape)
    return torch.where(named, aten.full.default([], number, dtype=a.dtype), a)


@rewrites(aten.copy.default, why="OpenVINO 2026.4 does not take its third argument")
def copy(a: Tensor, source: Tensor, non_blocking: bool = False) -> Any:
    """The source, as large and in the dtype of what it is written over."""
    del non_blocking
    return source.to(a.dtype).expand(a.shape).clone()


@rewrites(aten.slice_scatter.default, why="OpenVINO 2026.4 converts it, and compiles no such model")
def slice_scatter(
    a: Tensor,
    source: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Any:
    """The parts before and behind, and the source between them."""
    if step != 1 or not static(a, source):
        return NotImplemented
    size = a.shape[dim]
    first, last, _ = slice(start, end).indices(size)
    parts = [
        a.narrow(dim, 0, first),
        source,
        a.narrow(dim, max(first, last), size - max(first, last)),
    ]
    return torch.cat([part for part in parts if part.shape[dim]] or [a], dim)
