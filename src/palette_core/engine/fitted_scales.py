"""Scales fitted together with tables and indices, in turn.

With tables and indices as they are, the best factor of a block x with entries d is
Σ a x d / Σ a d²; with factors as they are, tables and indices are those of x / s, an error of
which counts a s². Each step lowers Σ a (x − s d)². Where scalars lie in host memory, several
stretches of each factor are tried as well, with the indices that they imply; where no weight is
bound to an entry, `scalar_scales` does that in fewer passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from palette_core.engine.scalar_scales import fit_scalar_scales
from palette_core.engine.sparsity import beside_zero
from palette_core.tensors.codebook import Codebook
from palette_core.tensors.layout import BlockLayout, Shape
from palette_core.tensors.nonzeros import merged
from palette_core.tensors.scales import apply_scale, by_block, range_scale, stored_dtype

if TYPE_CHECKING:
    from palette_core.tensors.scale_search import FactorBlocks

_SAMPLE = 1 << 16  # scalars of each table by which tables and factors find each other
_ROUNDS = 12
_ROUNDS_OF_VECTORS = 2  # each takes far longer
_LEAST_GAIN = 3e-4  # of the error: with less, a round was the last
_CLEAR = 0.99  # an error on the sample below this share of the range's is taken to be lower


@dataclass(frozen=True)
class Scaled:
    """A weight that is to be palettized with scales.

    Attributes:
        weight: what is to come near to.
        importance: of the weight's shape, or None.
        layout: of the tables.
        axis: of the output channels.
        extents: shape of the scale.
        by_channel: one factor per channel; these stay in the weight's dtype.
        mask: the nonzeros, where tables have an entry for zero that no other weight takes; of
            vectors, where these are of the nonzeros.
    """

    weight: Tensor
    importance: Tensor | None
    layout: BlockLayout
    axis: int
    extents: Shape
    by_channel: bool
    mask: Tensor | None = None

    def range(self) -> Tensor:
        """Return the largest magnitude of every block, as it is stored."""
        return self.stored(range_scale(self.weight, self.extents))

    def stored(self, scale: Tensor) -> Tensor:
        """Return factors as they are stored, rounded."""
        dtype = self.weight.dtype
        dtype = dtype if self.by_channel else stored_dtype(dtype, scale)
        # Never infinite; factors of a float64 weight may have been searched in float32.
        largest = min(torch.finfo(dtype).max, torch.finfo(scale.dtype).max)
        return scale.clamp(max=largest).to(dtype)

    def error(self, codebook: Codebook, scale: Tensor) -> float:
        """Return Σ a (x − s d)²."""
        gap = apply_scale(self.unit(codebook), scale) - self.weight
        squares = gap.double().square()
        return float((squares if self.importance is None else squares * self.importance).sum())

    def unit(self, codebook: Codebook) -> Tensor:
        """Return the entries in the place of the weight, not yet scaled."""
        table = replace(codebook, lut=codebook.lut.to(self.weight.dtype))
        # An algorithm of the CPU's leaves tables and codes there.
        points = table.decode().to(self.weight.device)
        return merged(points, self.mask, self.layout)

    def blocks(self) -> FactorBlocks | None:
        """Return scalars in host memory, cut into the blocks of factors, or None."""
        if self.layout.cluster_dim > 1 or self.weight.device.type != "cpu":
            return None
        from palette_core.tensors.scale_search import FactorBlocks  # numba loads slowly

        importance = self.importance
        if self.mask is not None:
            importance = self.mask if importance is None else self.mask * importance
        return FactorBlocks.of(self.weight, importance, self.layout, self.axis, self.extents)

    def improved(self, codebook: Codebook, scale: Tensor) -> Tensor:
        """Return better factors for the tables, and for the indices or those that they imply."""
        blocks = self.blocks()
        if blocks is None:
            return self.stored(self._least_squares(self.unit(codebook), scale))
        lut = codebook.lut
        if self.mask is not None:
            lut = beside_zero(codebook, lut.shape[1] - 1)[0].lut
        return self.stored(blocks.search(lut, scale))

    def _least_squares(self, unit: Tensor, scale: Tensor) -> Tensor:
        wide = unit.double()
        weighted = wide if self.importance is None else wide * self.importance
        cut, inside = by_block(weighted * self.weight, self.extents)
        product = cut.sum(inside).reshape(self.extents)
        cut, inside = by_block(weighted * wide, self.extents)
        square = cut.sum(inside).reshape(self.extents)
        best = product / torch.where(square > 0, square, torch.ones_like(square))
        return torch.where((best > 0) & (scale != 0), best, scale.double())

    def sample(self) -> Scaled | None:
        """Return some channels of every table, or None where all are few."""
        step = self.layout.points_per_block // _SAMPLE
        rows = self.layout.block[self.axis]
        if step < 2 or self.layout.cluster_dim > 1 or rows < 2 * step:
            return None
        at = torch.arange(0, rows, step, device=self.weight.device)
        groups = torch.arange(self.layout.grid[self.axis], device=self.weight.device) * rows
        picked = (groups[:, None] + at).reshape(-1)

        def fewer(shape: Shape, extent: int) -> Shape:
            return (*shape[: self.axis], extent, *shape[self.axis + 1 :])

        weight = self.weight.index_select(self.axis, picked)
        block = fewer(self.layout.block, len(at))
        return replace(
            self,
            weight=weight,
            importance=None
            if self.importance is None
            else self.importance.index_select(self.axis, picked),
            mask=None if self.mask is None else self.mask.index_select(self.axis, picked),
            layout=BlockLayout(tuple(weight.shape), block, 1, self.layout.vector_axis),
            extents=fewer(self.extents, len(picked)),
        )


Cluster = Callable[[Scaled, Tensor, bool], Codebook]


def fit_scales(what: Scaled, cluster: Cluster, *, by_entries: bool) -> tuple[Codebook, Tensor]:
    """Return tables, indices and scales that were fitted to each other.

    The error is never above that of scales from the ranges of blocks; of weights so large that
    tables are found by a sample of their channels, it is so by a clear margin on that sample, or
    compared in full.

    Args:
        what: the weight.
        cluster: makes tables and indices for a weight divided by a scale; the last argument says
            whether they are to be as they will be stored.
        by_entries: every weight may take the entry nearest to it.
    """
    narrow = what.weight.dtype.itemsize <= 4  # blocks hold float32
    blocks = what.blocks() if by_entries and narrow else None
    if blocks is not None:
        return fit_scalar_scales(what, cluster, blocks)
    some = what.sample()
    if some is None:
        return _in_turn(what, cluster, final=True)
    start = some.range()
    first = some.error(cluster(some, start, False), start)
    table, scale = _in_turn(some, cluster, final=False)
    clear = some.error(table, scale) < _CLEAR * first
    # Tables of the sample; ranges to begin with.
    better = what.improved(table, what.range())
    found = cluster(what, better, True), better
    if clear:
        return found
    return better_of(what, found, (cluster(what, what.range(), True), what.range()))


def _in_turn(what: Scaled, cluster: Cluster, *, final: bool) -> tuple[Codebook, Tensor]:
    scale = what.range()
    best = cluster(what, scale, final), scale
    error = what.error(*best)
    for _ in range(_ROUNDS if what.layout.cluster_dim == 1 else _ROUNDS_OF_VECTORS):
        scale = what.improved(*best)
        codebook = cluster(what, scale, final)
        now = what.error(codebook, scale)
        if not now < error:
            break
        best, enough = (codebook, scale), now > error * (1 - _LEAST_GAIN)
        error = now
        if enough:
            break
    return best


def better_of(
    what: Scaled, one: tuple[Codebook, Tensor], other: tuple[Codebook, Tensor]
) -> tuple[Codebook, Tensor]:
    """Return the tables and factors with the smaller error, the first of equals."""
    return one if what.error(*one) <= what.error(*other) else other
