"""Statistics, norms, order, running totals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from export_rewrites._registry import rewrites

aten = torch.ops.aten
_COREAI = "coreai-torch 0.4.3 has no lowering for it"
_LACKS = "no converter of the three has it (coreai-torch 0.4.3, coremltools 9.0, OpenVINO 2026.4)"


def _axes(a: Tensor, dim: Sequence[int] | int | None) -> list[int]:
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return list(range(a.dim()))
    return [d % a.dim() for d in ([dim] if isinstance(dim, int) else dim)]


def _moments(
    a: Tensor, dim: Sequence[int] | int | None, correction: Any, keepdim: bool
) -> tuple[Tensor, Tensor]:
    axes = _axes(a, dim)
    count = 1
    for axis in axes:
        count = count * a.shape[axis]
    mean = a.mean(axes, keepdim=True)
    spread = (a - mean).square().sum(axes, keepdim=keepdim)
    by = count - (1 if correction is None else correction)
    return spread / by, mean if keepdim else mean.squeeze(axes)


@rewrites(aten.var.correction, why=_COREAI + "; torch's own decomposition ends in prims")
def var(a: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    """Variance."""
    return _moments(a, dim, correction, keepdim)[0]


@rewrites(aten.std.correction, why=_COREAI + "; torch's own decomposition ends in prims")
def std(a: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    """Standard deviation."""
    return torch.sqrt(_moments(a, dim, correction, keepdim)[0])


@rewrites(aten.var_mean.correction, why=_COREAI + "; torch's own decomposition ends in prims")
def var_mean(a: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    """Variance and mean."""
    return _moments(a, dim, correction, keepdim)


@rewrites(
    aten.linalg_vector_norm.default,
    why="Core AI's compiler fails on orders other than 1, 2 and infinity",
)
def vector_norm(
    a: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """Norms of any order."""
    if dtype is not None or ord in (0, 1, 2, float("inf"), -float("inf")):
        return NotImplemented
    axes = _axes(a, dim)
    total = torch.exp(torch.log(torch.abs(a)) * ord).sum(axes, keepdim=keepdim)
    return torch.exp(torch.log(total) / ord)


def _tree(a: Tensor, dim: int, keepdim: bool) -> Any:
    """Multiply the halves of an axis until one element is left."""
    if not isinstance(a.shape[dim], int) or a.shape[dim] == 0:
        return NotImplemented
    while (n := a.shape[dim]) > 1:
        half = n // 2
        made = a.narrow(dim, 0, half) * a.narrow(dim, half, half)
        a = torch.cat([made, a.narrow(dim, n - 1, 1)], dim) if n % 2 else made
    return a if keepdim else a.squeeze(dim)


@rewrites(aten.prod.dim_int, why="coremltools 9.0 has no conversion for it")
def prod(a: Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Products of halves."""
    if dtype is None and not a.is_floating_point():
        dtype = torch.int64
    return _tree(a if dtype is None else a.to(dtype), dim, keepdim)


@rewrites(aten.prod.default, why="coremltools 9.0 has no conversion for it")
def prod_of_all(a: Tensor, *, dtype: Any = None) -> Any:
    """Products of halves."""
    return prod(a.reshape(-1), 0, dtype=dtype)


@rewrites(
    aten.argmax.default, why="coremltools 9.0 gives one index for each row where all are asked for"
)
def argmax(a: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """Of all, in one row."""
    if dim is not None:
        return NotImplemented
    found = torch.argmax(a.reshape(-1), 0)
    return found.reshape([1] * a.dim()) if keepdim else found


@rewrites(aten.dist.default, why=_LACKS)
def dist(a: Tensor, b: Tensor, p: Any = 2) -> Any:
    """Norm of the difference."""
    return torch.linalg.vector_norm(a - b, p)


@rewrites(aten._cdist_forward.default, why=_LACKS)
def cdist(a: Tensor, b: Tensor, p: float, mode: int | None) -> Any:
    """Distances between all rows."""
    del mode
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, dim=-1)


@rewrites(aten.argmin.default, why=_COREAI)
def argmin(a: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The largest of the negatives."""
    return torch.argmax(-a, dim, keepdim)


# --- order ----------------------------------------------------------------------------------------


@rewrites(aten.sort.default, why=_COREAI)
def sort(a: Tensor, dim: int = -1, descending: bool = False) -> Any:
    """All of them, the largest or smallest first."""
    return torch.topk(a, a.shape[dim], dim, descending, True)


@rewrites(aten.sort.stable, why=_COREAI)
def stable_sort(
    a: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    """By rank: how many go before, equals in their order."""
    if not stable:
        return torch.sort(a, dim, descending)
    x = a.movedim(dim, -1)
    n = x.shape[-1]
    here, other = x.unsqueeze(-1), x.unsqueeze(-2)
    place = torch.arange(n)
    earlier = place.unsqueeze(-1) > place.unsqueeze(0)
    ahead = (other > here) if descending else (other < here)
    rank = (ahead | ((other == here) & earlier)).to(torch.int64).sum(-1)
    hot = rank.unsqueeze(-2) == place.unsqueeze(-1)  # [..., rank, place]
    order = (hot.to(torch.int64) * place).sum(-1)
    return x.gather(-1, order).movedim(-1, dim), order.movedim(-1, dim)


@rewrites(aten.argsort.default, why="coremltools 9.0 and OpenVINO 2026.4 differ on equals")
def argsort(a: Tensor, dim: int = -1, descending: bool = False) -> Any:
    """The order of a sort."""
    return torch.sort(a, dim, descending)[1]


@rewrites(aten.kthvalue.default, why=_LACKS)
def kthvalue(a: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The last of the k smallest."""
    values, order = torch.topk(a, k, dim, False, True)
    values, order = values.narrow(dim, k - 1, 1), order.narrow(dim, k - 1, 1)
    return (values, order) if keepdim else (values.squeeze(dim), order.squeeze(dim))


@rewrites(aten.median.dim, aten.nanmedian.dim, why=_LACKS)
def median(a: Tensor, dim: int, keepdim: bool = False) -> Any:
    """The lower one of the two in the middle."""
    return torch.kthvalue(a, (a.shape[dim] - 1) // 2 + 1, dim, keepdim)


@rewrites(aten.median.default, why=_LACKS)
def median_of_all(a: Tensor) -> Any:
    """The lower one of the two in the middle."""
    return torch.median(a.reshape(-1), 0)[0]


@rewrites(aten.searchsorted.Tensor, why=_COREAI)
def searchsorted(
    sequence: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Any:
    """Count of what goes before."""
    if sorter is not None:
        return NotImplemented
    ahead = sequence.unsqueeze(-2) if sequence.dim() > 1 else sequence
    at = values.unsqueeze(-1)
    counted = ahead <= at if right or side == "right" else ahead < at
    dtype = torch.int32 if out_int32 else torch.int64
    return counted.to(dtype).sum(-1, dtype=dtype)


@rewrites(aten.histc.default, why=_LACKS)
def histc(a: Tensor, bins: int = 100, min: Any = 0, max: Any = 0) -> Any:
    """Counts of equal bins; the last one holds its upper end, what is outside counts nowhere."""
    if min == max:
        return NotImplemented
    flat = a.reshape(-1)
    inside = (flat >= min) & (flat <= max)
    at = torch.floor((flat - min) * bins / (max - min)).clamp(max=bins - 1)
    hot = (at.unsqueeze(-1) == torch.arange(bins, dtype=a.dtype)) & inside.unsqueeze(-1)
    return hot.to(a.dtype).sum(0)


@rewrites(aten.bucketize.Tensor, why=_COREAI)
def bucketize(
    values: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False
) -> Any:
    """Count of what goes before."""
    return torch.searchsorted(boundaries, values, out_int32=out_int32, right=right)


# --- running totals -------------------------------------------------------------------------------

_Pair = tuple[Tensor, ...]


def _scan(
    parts: _Pair, dim: int, fillers: Sequence[float], join: Callable[[_Pair, _Pair], _Pair]
) -> _Pair:
    """Join each element with all before it, in log₂ n steps (Hillis and Steele, 1986)."""
    parts = tuple(part.movedim(dim, -1) for part in parts)
    n, step = parts[0].shape[-1], 1
    while step < n:
        before = tuple(
            F.pad(part[..., :-step], (step, 0), value=filler)
            for part, filler in zip(parts, fillers, strict=True)
        )
        parts = join(before, parts)
        step *= 2
    return tuple(part.movedim(-1, dim) for part in parts)


@rewrites(
    aten.cumsum.default,
    why="OpenVINO 2026.4 keeps booleans boolean; coremltools 9.0 takes none, nor axes from behind",
)
def cumsum(a: Tensor, dim: int, *, dtype: Any = None) -> Any:
    """Of booleans and other dtypes, as numbers."""
    if a.dtype is torch.bool:
        dtype = dtype or torch.int64
    if a.dim() == 0 or ((dtype is None or dtype is a.dtype) and dim >= 0):
        return NotImplemented
    return torch.cumsum(a if dtype is None else a.to(dtype), dim % a.dim())


@rewrites(aten.cumprod.default, why=_LACKS)
def cumprod(a: Tensor, dim: int, *, dtype: Any = None) -> Any:
    """Running products."""
    a = a if dtype is None else a.to(dtype)
    return _scan((a,), dim, (1,), lambda before, now: (before[0] * now[0],))[0]


@rewrites(aten.logcumsumexp.default, why=_LACKS)
def logcumsumexp(a: Tensor, dim: int) -> Any:
    """Running sums of exponentials."""
    low = torch.finfo(a.dtype).min
    return _scan((a,), dim, (low,), lambda p, q: (torch.logaddexp(p[0], q[0]),))[0]


def _extreme(a: Tensor, dim: int, sign: int) -> Any:
    """Return the running maximum of ``sign * a``, and where it was met last."""
    place = torch.arange(a.shape[dim])
    shape = [1] * a.dim()
    shape[dim] = a.shape[dim]
    place = place.reshape(shape).expand(a.shape)

    def join(before: _Pair, now: _Pair) -> _Pair:
        kept = now[0] >= before[0] if sign > 0 else now[0] <= before[0]
        return torch.where(kept, now[0], before[0]), torch.where(kept, now[1], before[1])

    info = torch.finfo(a.dtype) if a.is_floating_point() else torch.iinfo(torch.int32)
    return _scan((a, place), dim, (info.min if sign > 0 else info.max, 0), join)


@rewrites(aten.cummax.default, why=_LACKS)
def cummax(a: Tensor, dim: int) -> Any:
    """Running maxima."""
    return _extreme(a, dim, 1)


@rewrites(aten.cummin.default, why=_LACKS)
def cummin(a: Tensor, dim: int) -> Any:
    """Running minima."""
    return _extreme(a, dim, -1)
