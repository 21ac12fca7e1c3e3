"""Blocks that hold no more distinct points than a table has entries: each is its own entry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from palette_core.tensors.codebook import Codebook

_SPARE = 16  # points of a block looked at first, besides two for each entry
_FEW = 256  # numbers that are counted one by one


@dataclass(frozen=True)
class ExactBlocks:
    """Blocks of a problem that a table can hold as they are.

    Attributes:
        blocks: ``[b]`` int64, which ones.
        codebook: of these blocks alone: distinct points by their coordinates, spare entries
            repeating the last.
        every: there are no others.
    """

    blocks: Tensor
    codebook: Codebook
    every: bool

    @classmethod
    def of(cls, points: Tensor, k: int, *, and_zero: bool = False) -> Self | None:
        """Find them, or return None.

        Args:
            points: ``[B, N, D]``.
            k: entries of a table.
            and_zero: one entry of each table is to be zero.
        """
        count, points = points.shape[1], points.detach()
        if and_zero:
            points = torch.cat([points, torch.zeros_like(points[:, :1])], dim=1)
        step = max(1, points.shape[1] // (2 * k + _SPARE))
        may_fit = None
        if step > 1 and len(points) == 1 and points.numel() <= _FEW * step:
            # As below, but of one block, as most weights are: without a dozen calls of torch.
            if len(set(map(tuple, points[0, ::step].tolist()))) > k:
                return None
        elif step > 1:
            # Few points tell of nearly every other block that it has too many.
            may_fit = _counts(points[:, ::step]) <= k
            if not bool(may_fit.any()):
                return None
        blocks = torch.arange(len(points), device=points.device)
        if may_fit is not None:
            blocks = blocks[may_fit]
        found = _Distinct.of(points if len(blocks) == len(points) else points[blocks])
        few = found.counts <= k
        if not bool(few.any()):
            return None
        codebook = found.codebook(few, k)
        codebook = replace(codebook, codes=codebook.codes[:, :count])
        return cls(blocks[few], codebook, every=len(blocks) == len(points) and bool(few.all()))

    def put_into(self, codebook: Codebook) -> Codebook:
        """Return a codebook of all blocks, not quantized, in which these are exact."""
        lut = self.codebook.lut.to(codebook.lut.dtype)
        return replace(
            codebook,
            lut=codebook.lut.index_copy(0, self.blocks, lut),
            codes=codebook.codes.index_copy(0, self.blocks, self.codebook.codes),
        )


def _counts(points: Tensor) -> Tensor:
    """Return ``[B]``: how many of the points ``[B, N, D]`` are distinct."""
    if points.numel() <= _FEW:  # the interpreter is quicker than a dozen calls of torch
        sets = [set(map(tuple, block)) for block in points.tolist()]
        return torch.tensor([len(each) for each in sets], device=points.device)
    if points.shape[-1] > 1:
        return _Distinct.of(points).counts
    ordered = points[..., 0].sort(dim=1).values
    return (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1) + 1


@dataclass(frozen=True)
class _Distinct:
    """Points ``[B, N, D]`` in the order of their coordinates.

    ``order`` ``[B, N]`` are their places before, ``rank`` ``[B, N]`` how many distinct ones come
    before each, and ``counts`` ``[B]`` how many there are.
    """

    points: Tensor
    order: Tensor
    rank: Tensor
    counts: Tensor

    @classmethod
    def of(cls, points: Tensor) -> Self:
        if points.shape[-1] == 1:
            ordered, order = points[..., 0].sort(dim=1)
            ordered = ordered[..., None]
        else:
            order = points[..., -1].argsort(dim=1, stable=True)
            for d in range(points.shape[-1] - 2, -1, -1):
                order = order.gather(1, points[..., d].gather(1, order).argsort(dim=1, stable=True))
            ordered = points.gather(1, order[..., None].expand_as(points))
        differs = (ordered[:, 1:] != ordered[:, :-1]).any(-1)
        rank = torch.cat([torch.zeros_like(order[:, :1]), differs.cumsum(1)], dim=1)
        return cls(ordered, order, rank, rank[:, -1] + 1)

    def codebook(self, which: Tensor, n_entries: int) -> Codebook:
        """Return tables and codes of the blocks that ``which`` ``[B]`` bool names."""
        points, order, rank = self.points[which], self.order[which], self.rank[which]
        wide = torch.promote_types(points.dtype, torch.float32)
        at = rank[..., None].expand_as(points)
        lut = torch.zeros((len(points), n_entries, points.shape[2]), dtype=wide)
        lut = lut.to(points.device).scatter(1, at, points.to(wide))
        entries = torch.arange(n_entries, device=points.device).expand(len(points), -1)
        used = torch.minimum(entries, rank[:, -1:])
        codes = torch.zeros_like(rank, dtype=torch.uint8).scatter(1, order, rank.to(torch.uint8))
        return Codebook(lut.gather(1, used[..., None].expand_as(lut)), codes)
