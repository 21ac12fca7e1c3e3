"""The nonzeros of a weight, block by block, as points of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from palette_core.tensors.layout import BlockLayout


@dataclass(frozen=True)
class Nonzeros:
    """Which scalar points of each block are not zero, in the order of the points.

    Attributes:
        places: ``[B, M]`` int64: the nonzeros of each block, M the most that one has, or 1. Blocks
            with fewer repeat theirs; one without any has any of its points.
        counts: ``[B]`` int64, how many nonzeros there are.
        size: N, the points of a block.
    """

    places: Tensor
    counts: Tensor
    size: int

    @classmethod
    def of(cls, mask: Tensor, layout: BlockLayout) -> Self:
        """Find them: ``mask``, bool of the weight's shape, says which elements are not zero."""
        points = layout.split(mask)[..., 0]
        counts = points.sum(dim=1)
        most = max(1, int(counts.max()))
        order = torch.argsort(~points, dim=1, stable=True)[:, :most]
        turns = torch.arange(most, device=mask.device) % counts.clamp(min=1)[:, None]
        return cls(order.gather(1, turns), counts, points.shape[1])

    def take(self, points: Tensor) -> Tensor:
        """Return ``[B, M, 1]`` of points ``[B, N, 1]``, for autograd to follow."""
        return points[..., 0].gather(1, self.places)[..., None]

    def put(self, values: Tensor) -> Tensor:
        """Return ``[B, N, …]``, zero but for values ``[B, M, …]``; repeated ones count once."""
        columns = torch.arange(self.places.shape[1], device=values.device)
        rows, columns = (columns < self.counts[:, None]).nonzero(as_tuple=True)
        out = values.new_zeros((len(self.places), self.size, *values.shape[2:]))
        return out.index_put((rows, self.places[rows, columns]), values[rows, columns])

    def evenly(self) -> Iterator[tuple[Tensor, int]]:
        """Yield the blocks, ``[b]`` int64, that have equally many nonzeros, and how many."""
        for count in sorted(set(self.counts.tolist())):
            yield (self.counts == count).nonzero()[:, 0], max(1, count)
