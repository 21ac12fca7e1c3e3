"""Search for the scales that suit given tables of scalars, and for codes, in host memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.threads import map_threads, slices_of
from palette_core.tensors._scale_kernel import (
    CELLS,
    find_limits,
    make_cells,
    search_scales,
    settle,
)
from palette_core.tensors.layout import BlockLayout, Shape

Floats = NDArray[np.float32]
Numbers = NDArray[np.int32]

WIDE = (1.0, 0.8, 0.86, 0.91, 0.955, 1.045, 1.1, 1.2)
_PIECE = 1 << 20  # weights that a thread takes at a time


@dataclass(frozen=True)
class Settled:
    """The nearest entries for all weights.

    Attributes:
        codes: ``[B, N]`` uint8.
        error: Σ a (x − s d)².
        means: ``[B, K]`` float32, the tables that suit the codes best; what no weight takes is as
            it was.
    """

    codes: Tensor
    error: float
    means: Tensor


@dataclass(frozen=True)
class FactorBlocks:
    """Scalars of a weight in host memory, by the blocks that share a factor.

    Attributes:
        x: ``[R, C]`` float32, an output channel in each row.
        weights: importance, the same; or ``[R, 0]``.
        size: columns that share a factor.
        by_row: ``[R]``, what a row adds to the number of its table.
        by_block: ``[C / size]``, what a block adds.
        layout: of the tables.
        axis: of the output channels.
        extents: shape of the scale.
    """

    x: Floats
    weights: Floats
    size: int
    by_row: Numbers
    by_block: Numbers
    layout: BlockLayout
    axis: int
    extents: Shape

    @classmethod
    def of(
        cls,
        weight: Tensor,
        importance: Tensor | None,
        layout: BlockLayout,
        axis: int,
        extents: Shape,
    ) -> Self | None:
        """Cut a weight in host memory; None where a factor spans several tables.

        Args:
            weight: the weight.
            importance: of its shape, or None.
            layout: of the tables; entries are scalars.
            axis: of the output channels.
            extents: shape of the scale.
        """
        rows = weight.shape[axis]
        count = math.prod(extents) // rows
        places = _tables(layout, axis, count)
        if places is None:
            return None
        x = _rows(weight, axis)
        weights = np.empty((rows, 0), np.float32) if importance is None else _rows(importance, axis)
        return cls(x, weights, x.shape[1] // count, *places, layout, axis, extents)

    def search(self, lut: Tensor, scale: Tensor, stretches: tuple[float, ...] = WIDE) -> Tensor:
        """Return the best factors that several stretches of the present ones lead to.

        Args:
            lut: ``[B, K, 1]``, ascending.
            scale: the present factors.
            stretches: what they are multiplied by.

        Returns:
            float32 of the scale's shape.
        """
        cells = _Cells.of(lut)
        found = _rows(scale, self.axis).copy()
        times = np.asarray(stretches, np.float32)

        def search(part: slice) -> None:
            search_scales(
                self.x[part], self.weights[part], self.size, self.by_row[part], self.by_block,
                cells.low, cells.per_unit, cells.values, times, found[part],
            )  # fmt: skip

        map_threads(search, self._parts())
        return self._put_back(found, self.extents)

    def settle(self, lut: Tensor, scale: Tensor, *, means: bool = True) -> Settled:
        """Return the nearest entries, and what they come to.

        Args:
            lut: ``[B, K, 1]``, ascending.
            scale: the factors.
            means: False returns the tables as they are.
        """
        cells = _Cells.of(lut)
        tables = cells.tables
        limits, below = np.empty_like(tables), np.empty((len(tables), CELLS), np.uint8)
        first = np.empty(tables.shape, np.uint8)
        find_limits(tables, cells.low, cells.per_unit, limits, below, first)
        factors = _rows(scale, self.axis)
        codes = np.empty(self.x.shape, np.uint8)

        def nearest(part: slice) -> tuple[float, NDArray[np.float64]]:
            sums = np.zeros((*tables.shape, 2) if means else (0, 0, 2))
            error = settle(
                self.x[part], self.weights[part], self.size, self.by_row[part], self.by_block,
                cells.low, cells.per_unit, below, limits, first, tables, factors[part], codes[part],
                sums,
            )  # fmt: skip
            return error, sums

        found = map_threads(nearest, self._parts())
        if means:
            total = np.sum([sums for _, sums in found], axis=0)
            used = total[..., 1] > 0
            tables = np.where(used, total[..., 0] / np.where(used, total[..., 1], 1.0), tables)
            tables = np.take_along_axis(tables, first.astype(np.int64), 1)  # ascending as before
        merged = self._put_back(codes, self.layout.shape)
        return Settled(
            self.layout.split(merged)[..., 0].contiguous(),
            math.fsum(error for error, _ in found),
            torch.from_numpy(tables.astype(np.float32)),
        )

    def _parts(self) -> list[slice]:
        return slices_of(len(self.x), max(1, _PIECE // self.x.shape[1]))

    def _put_back(self, rows: NDArray[np.generic], shape: Shape) -> Tensor:
        order = (shape[self.axis], *(n for at, n in enumerate(shape) if at != self.axis))
        return torch.from_numpy(rows).reshape(order).movedim(0, self.axis)


@dataclass(frozen=True)
class _Cells:
    """Ranges of tables ``[B, K]``, cut evenly; see `make_cells`."""

    tables: Floats
    low: Floats
    per_unit: Floats
    values: Floats

    @classmethod
    def of(cls, lut: Tensor) -> Self:
        tables = lut[..., 0].float().contiguous().numpy()
        low, per_unit = np.empty(len(tables), np.float32), np.empty(len(tables), np.float32)
        values = np.empty((len(tables), CELLS), np.float32)
        make_cells(tables, low, per_unit, values)
        return cls(tables, low, per_unit, values)


def _rows(tensor: Tensor, axis: int) -> Floats:
    """Return float32 with a channel in each row."""
    flat = tensor.detach().movedim(axis, 0).reshape(tensor.shape[axis], -1)
    found: Floats = flat.to("cpu", torch.float32).contiguous().numpy()
    return found


def _tables(layout: BlockLayout, axis: int, count: int) -> tuple[Numbers, Numbers] | None:
    """Return what channels, and each of ``count`` blocks of inputs, add to a table's number."""
    numbers = torch.arange(layout.n_blocks).reshape(layout.grid)
    first = numbers.select(axis, 0)
    inputs = [n for at, n in enumerate(layout.block) if at != axis]
    for at, extent in enumerate(inputs):
        first = first.repeat_interleave(extent, at)
    blocks = first.reshape(count, -1)
    if not bool((blocks == blocks[:, :1]).all()):
        return None
    step = math.prod(layout.grid[axis + 1 :])
    rows = torch.arange(layout.shape[axis]) // layout.block[axis] * step
    return rows.int().numpy(), blocks[:, 0].int().numpy()
