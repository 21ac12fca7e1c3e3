"""Tensors of many axes, written with fewer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from export_rewrites._registry import rewrites
from export_rewrites.indexing import static

aten = torch.ops.aten
_MOST = 5
_WHY = "coremltools 9.0 takes tensors of 5 dimensions"


@rewrites(aten.permute.default, why=_WHY)
def permute(a: Tensor, dims: Sequence[int]) -> Any:
    """Axes of size 1 left out, and those joined that stay together."""
    if a.dim() <= _MOST or not static(a):
        return NotImplemented
    order = [dim % a.dim() for dim in dims]
    runs: list[list[int]] = []
    for axis in (axis for axis in order if a.shape[axis] != 1):
        if (
            runs
            and all(a.shape[i] == 1 for i in range(runs[-1][-1] + 1, axis))
            and (axis > runs[-1][-1])
        ):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    if len(runs) > _MOST:
        return NotImplemented
    before = sorted(runs)
    sizes = [math.prod(a.shape[axis] for axis in run) for run in before]
    moved = a.reshape(sizes).permute([before.index(run) for run in runs])
    return moved.reshape([a.shape[axis] for axis in order])


@rewrites(aten.transpose.int, why=_WHY)
def transpose(a: Tensor, dim0: int, dim1: int) -> Any:
    """Axes of size 1 left out, and those joined that stay together."""
    order = list(range(a.dim()))
    if a.dim() <= _MOST:
        return NotImplemented
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(a, order)


@rewrites(aten.expand.default, why=_WHY)
def expand(a: Tensor, size: Sequence[int], *, implicit: bool = False) -> Any:
    """Axes joined that are repeated, or kept, together."""
    del implicit
    if len(size) <= _MOST or not static(a) or not all(isinstance(n, int) for n in size):
        return NotImplemented
    own = [1] * (len(size) - a.dim()) + list(a.shape)
    wanted = [n if m == -1 else m for n, m in zip(own, size, strict=True)]
    pairs: list[tuple[bool, int, int]] = []
    for n, m in zip(own, wanted, strict=True):
        if m == 1:
            continue
        if pairs and pairs[-1][0] == (n != m):
            pairs[-1] = (n != m, pairs[-1][1] * n, pairs[-1][2] * m)
        else:
            pairs.append((n != m, n, m))
    if len(pairs) > _MOST:
        return NotImplemented
    joined = a.reshape([n for _, n, _ in pairs]).expand([m for _, _, m in pairs])
    return joined.reshape(wanted)


def _joined(a: Tensor, axes: Sequence[int]) -> tuple[Tensor, list[int]] | None:
    """Return a tensor with neighbouring axes joined, and where ``axes`` are; None if it is small.

    Axes are joined that are both among ``axes``, or both are not.
    """
    if a.dim() <= _MOST or not static(a):
        return None
    chosen = {axis % a.dim() for axis in axes}
    runs: list[tuple[bool, int]] = []
    for axis, n in enumerate(a.shape):
        if runs and runs[-1][0] == (axis in chosen):
            runs[-1] = (runs[-1][0], runs[-1][1] * n)
        else:
            runs.append((axis in chosen, n))
    if len(runs) > _MOST:
        return None
    return a.reshape([n for _, n in runs]), [i for i, (inside, _) in enumerate(runs) if inside]


def _left(a: Tensor, axes: Sequence[int], keepdim: bool) -> list[int]:
    chosen = {axis % a.dim() for axis in axes}
    sizes = [1 if axis in chosen else n for axis, n in enumerate(a.shape)]
    return [n for axis, n in enumerate(sizes) if keepdim or axis not in chosen]


@rewrites(aten.unbind.int, why=_WHY)
def unbind(a: Tensor, dim: int = 0) -> Any:
    """Other axes joined."""
    found = _joined(a, [dim])
    if found is None:
        return NotImplemented
    joined, (at,) = found
    return [part.reshape(_left(a, [dim], False)) for part in joined.unbind(at)]


@rewrites(aten.select.int, why=_WHY)
def select(a: Tensor, dim: int, index: int) -> Any:
    """Other axes joined."""
    found = _joined(a, [dim])
    if found is None:
        return NotImplemented
    joined, (at,) = found
    return joined.select(at, index).reshape(_left(a, [dim], False))


def _of_joined(op: Any) -> None:
    """Enter the rewrite of a reduction that may go over several axes."""

    @rewrites(op, why=_WHY)
    def reduction(a: Tensor, dim: Any = (), keepdim: bool = False, **rest: Any) -> Any:
        axes = list(dim or ())
        found = _joined(a, axes) if axes else None
        if found is None:
            return NotImplemented
        return op(*found, False, **rest).reshape(_left(a, axes, keepdim))


def _of_joined_with_indices(op: Any) -> None:
    """Enter the rewrite of a reduction over one axis that says where it found its result, too."""

    @rewrites(op, why=_WHY)
    def reduction(a: Tensor, dim: int, keepdim: bool = False) -> Any:
        found = _joined(a, [dim])
        if found is None:
            return NotImplemented
        joined, (at,) = found
        return tuple(made.reshape(_left(a, [dim], keepdim)) for made in op(joined, at, False))


for _op in (aten.amax.default, aten.amin.default, aten.sum.dim_IntList, aten.mean.dim):
    _of_joined(_op)
for _op in (aten.max.dim, aten.min.dim):
    _of_joined_with_indices(_op)
