"""The nonzeros of a weight, block by block, as points of their own.

With entries of D values, D nonzeros of a block that follow each other, row by row, make a vector,
however many zeros lie between them. The last vector of a block may have less to stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from palette_core.tensors.layout import BlockLayout


@dataclass(frozen=True)
class Nonzeros:
    """Which elements of each block are not zero, in the order of the block.

    Attributes:
        places: ``[B, M]`` int64: the nonzeros of each block, M the most that one has, or 1, and a
            multiple of D. Blocks with fewer repeat theirs; one without any has any of its elements.
        counts: ``[B]`` int64, how many nonzeros there are.
        size: the elements of a block.
        dim: D.
    """

    places: Tensor
    counts: Tensor
    size: int
    dim: int = 1

    @classmethod
    def of(cls, mask: Tensor, layout: BlockLayout) -> Self:
        """Find them: ``mask``, bool of the weight's shape, says which elements are not zero."""
        points, dim = layout.scalars.split(mask)[..., 0], layout.cluster_dim
        counts = points.sum(dim=1)
        most = dim * max(1, int(_vectors(counts, dim).max()))
        order = torch.argsort(~points, dim=1, stable=True)[:, :most]
        turns = torch.arange(most, device=mask.device) % counts.clamp(min=1)[:, None]
        return cls(order.gather(1, turns), counts, points.shape[1], dim)

    def take(self, points: Tensor) -> Tensor:
        """Return ``[B, M / D, D]`` of elements ``[B, size, 1]``, for autograd to follow."""
        taken = points[..., 0].gather(1, self.places)
        return taken.reshape(len(taken), -1, self.dim)

    def put(self, values: Tensor) -> Tensor:
        """Return ``[B, size, …]``, zero but for values ``[B, M, …]``; repeated ones count once."""
        columns = torch.arange(self.places.shape[1], device=values.device)
        rows, columns = (columns < self.counts[:, None]).nonzero(as_tuple=True)
        out = values.new_zeros((len(self.places), self.size, *values.shape[2:]))
        return out.index_put((rows, self.places[rows, columns]), values[rows, columns])

    def put_codes(self, codes: Tensor) -> Tensor:
        """Return codes ``[B, N]`` of all points, of those of the nonzeros, ``[B, M / D]``.

        Codes of scalars go where their nonzeros lie; those of vectors, of which a block has no more
        than it has points, come first. The others are 0.
        """
        if self.dim == 1:
            return self.put(codes)
        used = torch.arange(codes.shape[1], device=codes.device) * self.dim < self.counts[:, None]
        missing = self.size // self.dim - codes.shape[1]
        return torch.nn.functional.pad(torch.where(used, codes, 0), (0, missing))

    def take_codes(self, codes: Tensor) -> Tensor:
        """Return ``[B, M / D]`` of codes ``[B, N]``: the inverse of `put_codes`."""
        if self.dim == 1:
            return self.take(codes[..., None])[..., 0]
        return codes[:, : self.places.shape[1] // self.dim]

    def evenly(self) -> Iterator[tuple[Tensor, int]]:
        """Yield the blocks, ``[b]`` int64, with equally many vectors of nonzeros, and how many."""
        vectors = _vectors(self.counts, self.dim)
        for count in sorted(set(vectors.tolist())):
            yield (vectors == count).nonzero()[:, 0], max(1, count)


def _vectors(counts: Tensor, dim: int) -> Tensor:
    return (counts + dim - 1) // dim


def codes_in_use(mask: Tensor, layout: BlockLayout) -> Tensor:
    """Return bool ``[B, N]``: which codes of a weight with a mask stand for something.

    Those of scalars do where the mask is True, and of vectors as many of each block, from the
    first, as its nonzeros make.
    """
    inside = layout.scalars.split(mask)[..., 0]
    if layout.cluster_dim == 1:
        return inside
    vectors = torch.arange(layout.points_per_block, device=mask.device)
    return vectors * layout.cluster_dim < inside.sum(1, keepdim=True)


def turns_of(mask: Tensor, layout: BlockLayout) -> Tensor:
    """Return which of the listed values of the nonzeros each element of a weight takes.

    Values are listed block by block, D for each index that a block has. Traceable, for backends.

    Args:
        mask: bool, of the weight's shape.
        layout: of the weight.

    Returns:
        int64 of the weight's shape; of no account, and in range, where the mask is False.
    """
    inside, dim = layout.scalars.split(mask)[..., 0], layout.cluster_dim
    counts = inside.sum(1, keepdim=True)
    listed = (counts + dim - 1) // dim * dim
    first = listed.cumsum(0) - listed
    turn = torch.where(inside, first + inside.cumsum(1) - 1, 0)
    return layout.scalars.merge(turn[..., None])


def merged(points: Tensor, mask: Tensor | None, layout: BlockLayout) -> Tensor:
    """Return the weight of looked-up points ``[B, N, D]``.

    Without a mask, and of scalars, each is where it belongs. The values of vectors of nonzeros are
    put, in their order, where the mask of their block is True, and zeros elsewhere.
    """
    if mask is None or layout.cluster_dim == 1:
        return layout.merge(points)
    inside = layout.scalars.split(mask)[..., 0]
    turn = (inside.cumsum(1) - 1).clamp(min=0)
    values = torch.where(inside, points.flatten(1).gather(1, turn), 0.0)
    return layout.scalars.merge(values[..., None])
