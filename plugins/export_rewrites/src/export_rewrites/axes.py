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
