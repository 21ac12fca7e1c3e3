"""Weight ↔ blocks ↔ vectors: the one place for every question about axes.

A layout is a regular grid of equal blocks over the weight, each block with its own LUT, and a
vector axis along which ``cluster_dim`` neighbouring elements share one index. Both runtimes
store exactly this (grid of LUTs, vector axis), so anything expressed as a layout exports.

With weight shape ``(s_0, …)`` and vector length ``D`` along axis ``v``:

* index shape: ``s`` with ``s_v`` divided by ``D``;
* grid: blocks along each axis, ``g_i`` (``B`` in all);
* points: ``[B, N, D]``, N vectors in each block, row-major inside the block;
* LUT on the grid: ``[g_0, …, g_{r-1}, K, D]``, the rank of the weight plus two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from palette_core.errors import IncompatibleShapeError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class BlockLayout:
    """A grid of equal blocks over a weight; see the module's docstring for the shapes.

    Raises:
        IncompatibleShapeError: a block does not divide the weight, or ``cluster_dim`` does not
            divide the block along ``vector_axis``.
    """

    shape: Shape
    block: Shape
    cluster_dim: int = 1
    vector_axis: int = 0

    def __post_init__(self) -> None:
        if not self.shape or math.prod(self.shape) == 0:
            raise IncompatibleShapeError(f"a weight of shape {self.shape} has nothing to palettize")
        if len(self.block) != len(self.shape):
            raise IncompatibleShapeError(
                f"block {self.block} must have as many axes as the weight's shape {self.shape}"
            )
        for axis, (extent, step) in enumerate(zip(self.shape, self.block, strict=True)):
            if step < 1 or extent % step:
                raise IncompatibleShapeError(
                    f"a block of {step} elements does not divide the {extent} of axis {axis} "
                    f"of shape {self.shape}"
                )
        if not 0 <= self.vector_axis < len(self.shape):
            raise IncompatibleShapeError(
                f"vector axis {self.vector_axis} does not exist in a weight of shape {self.shape}"
            )
        if self.block[self.vector_axis] % self.cluster_dim:
            raise IncompatibleShapeError(
                f"cluster_dim {self.cluster_dim} does not divide the "
                f"{self.block[self.vector_axis]} elements that one block has along axis "
                f"{self.vector_axis} of shape {self.shape}"
            )

    @property
    def grid(self) -> Shape:
        """Blocks along each axis."""
        return tuple(s // b for s, b in zip(self.shape, self.block, strict=True))

    @property
    def n_blocks(self) -> int:
        """B, the number of look-up tables."""
        return math.prod(self.grid)

    @property
    def points_per_block(self) -> int:
        """N, the number of indices in one block."""
        return math.prod(self.block) // self.cluster_dim

    @property
    def index_shape(self) -> Shape:
        """Shape of the indices: the weight's, with the vector axis divided by ``cluster_dim``."""
        return tuple(
            s // self.cluster_dim if axis == self.vector_axis else s
            for axis, s in enumerate(self.shape)
        )

    def lut_shape(self, n_entries: int) -> Shape:
        """Shape ``(*grid, n_entries, cluster_dim)`` of the look-up tables."""
        return (*self.grid, n_entries, self.cluster_dim)

    def split(self, weight: Tensor) -> Tensor:
        """Cut a weight of ``shape`` into points ``[B, N, D]``; a view where strides allow."""
        if self._is_one_row:
            return weight.reshape(1, self.points_per_block, 1)
        sizes: list[int] = []
        for axis, (g, b) in enumerate(zip(self.grid, self.block, strict=True)):
            sizes += (
                [g, b // self.cluster_dim, self.cluster_dim] if axis == self.vector_axis else [g, b]
            )
        order = self._order()
        cut = weight.reshape(sizes).permute(order)
        return cut.reshape(self.n_blocks, self.points_per_block, self.cluster_dim)

    def merge(self, points: Tensor) -> Tensor:
        """Put points ``[B, N, D]`` together to a weight of ``shape``: the inverse of `split`."""
        if self._is_one_row:
            return points.reshape(self.shape)
        order = self._order()
        inner = [
            b // self.cluster_dim if axis == self.vector_axis else b
            for axis, b in enumerate(self.block)
        ]
        cut = points.reshape(*self.grid, *inner, self.cluster_dim)
        return cut.permute(_inverse(order)).reshape(self.shape)

    def split_indices(self, indices: Tensor) -> Tensor:
        """Cut indices of ``index_shape`` into codes ``[B, N]``."""
        return self._scalar().split(indices).squeeze(-1)

    def merge_codes(self, codes: Tensor) -> Tensor:
        """Put codes ``[B, N]`` together to indices of ``index_shape``."""
        return self._scalar().merge(codes.unsqueeze(-1))

    @property
    def _is_one_row(self) -> bool:
        """One block of scalars: points in the order of the weight."""
        return self.cluster_dim == 1 and self.block == self.shape

    @property
    def scalars(self) -> BlockLayout:
        """The layout of the same blocks, cut into single elements."""
        if self.cluster_dim == 1:
            return self
        return BlockLayout(self.shape, self.block, 1, self.vector_axis)

    def _scalar(self) -> BlockLayout:
        if self.cluster_dim == 1:
            return self
        block = tuple(
            b // self.cluster_dim if axis == self.vector_axis else b
            for axis, b in enumerate(self.block)
        )
        return BlockLayout(self.index_shape, block)

    def _order(self) -> list[int]:
        """Axes of the cut weight, ordered as grid, then block, then vector."""
        grid, block, at = [], [], 0
        vector = -1
        for axis in range(len(self.shape)):
            grid.append(at)
            block.append(at + 1)
            at += 2
            if axis == self.vector_axis:
                vector = at
                at += 1
        return [*grid, *block, vector]


def _inverse(order: list[int]) -> list[int]:
    inverse = [0] * len(order)
    for position, axis in enumerate(order):
        inverse[axis] = position
    return inverse
