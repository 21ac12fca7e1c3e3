"""The grid of cells over a block of float32 points, and the atoms it makes.

Points are binned into equal cells over the range that nearly all of them fill. Each closed cell
stands as one atom at the exact mean of its points; each open one as its distinct points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from palette_core._common.threads import slices_of
from palette_core.builtins.clusterers.kmeans1d.block import set_limits
from palette_core.builtins.clusterers.kmeans1d.passes import (
    assign_cells,
    fill_cells,
    gather_open,
    merge_atoms,
)
from palette_core.builtins.clusterers.kmeans1d.solver import Floats, Ints

_SAMPLE = 2048
_PER_ENTRY = 64  # least number of cells per entry in the search
_FEWEST = 1024
_PER_CELL = 256  # points in an average cell, at most
_SEARCH_CELLS = 1 << 16  # as many as there are float16 values
PART = 1 << 20  # points one thread takes at a time
_PART_CELLS = 1 << 21  # most cells in all parts' tables together

Float32s = NDArray[np.float32]
Runner = Callable[[Callable[[slice], Any], Sequence[slice]], list[Any]]


@dataclass(frozen=True)
class Grid:
    """Equal cells 1 … top-1 from ``low`` up; 0 and ``top`` hold what lies outside."""

    low: np.float32
    per_unit: np.float32
    top: int

    @property
    def width(self) -> float:
        """An upper bound of a cell's width; cell borders are a little off by rounding."""
        return 1.05 / float(self.per_unit)


def sample_step(count: int) -> int:
    """Return the stride at which `choose_grid` samples a block of ``count`` points."""
    return max(1, count // _SAMPLE)


def choose_grid(sample: Float32s, count: int, k: int, resolution: int | None) -> Grid | None:
    """Pick the grid for a block, or None where sorting all points is better.

    Args:
        sample: some points of the block, from every part of it.
        count: N, the number of points.
        k: entries of the LUT.
        resolution: cells are 10^-resolution wide, but at least 64 per entry and at most as
            many as float16 has values; None asks for the cells that suit a proof best.
    """
    least, most = float(sample.min()), float(sample.max())
    spread = 2.0 * (most - least)
    if not 1e-30 < spread < 1e30 or max(-least, most) > 1e6 * spread:
        return None  # the float32 arithmetic of cells would be too coarse
    if resolution is None:
        fewest = cells = max(_SEARCH_CELLS, min(k << 10, count // 4))
    else:
        wanted = spread * 10.0 ** min(resolution, 60)
        fewest = min(max(_PER_ENTRY * k, _FEWEST, count // _PER_CELL), _SEARCH_CELLS)
        cells = int(min(max(wanted, fewest), max(fewest, min(_SEARCH_CELLS, count // 8))))
    if 2 * fewest > count:
        return None
    low = np.float32(least - 0.25 * spread)
    return Grid(low, np.float32(cells / spread), cells + 1)


def sort_points(x: Sequence[Float32s], w: Sequence[Float32s]) -> tuple[Float32s, Float32s]:
    """Join parts and sort them by ``x``; ``w`` follows unless its parts are empty."""
    values, weights = (p[0] if len(p) == 1 else np.concatenate(p) for p in (x, w))
    if not weights.size:
        values.sort()
        return values, weights
    order = np.argsort(values, kind="stable")
    return values[order], weights[order]


class Source(Protocol):
    """A block of points, wherever it lies."""

    grid: Grid
    cells: Floats
    has_weights: bool

    def gather(self, is_open: NDArray[np.uint8]) -> tuple[Float32s, Float32s]:
        """Return the points in open cells, sorted, and their weights (empty for ones)."""
        ...


class HostSource:
    """A block of points in host memory.

    Attributes:
        grid: the grid.
        cells: ``[top + 1, 2 or 3]`` sums of each cell; see `fill_cells`.
        has_weights: some point weighs something.
    """

    def __init__(self, points: Float32s, weights: Float32s | None, grid: Grid, run: Runner) -> None:
        self.grid = grid
        self.cells: Floats
        self._points = points
        self._run = run
        size = max(PART, math.ceil(points.size * grid.top / _PART_CELLS))
        self._parts = slices_of(points.size, size)
        self._weights = np.empty(0, np.float32) if weights is None else weights
        self.has_weights = weights is not None
        self.cells, *others = run(self._fill, self._parts)
        for filled in others:
            self.cells += filled

    def _weights_of(self, part: slice) -> Float32s:
        return self._weights[part] if self.has_weights else self._weights

    def _fill(self, part: slice) -> Floats:
        out = np.zeros((self.grid.top + 1, 3 if self.has_weights else 2))
        fill_cells(
            self._points[part], self._weights_of(part), self.grid.low, self.grid.per_unit, out
        )
        return out

    def gather(self, is_open: NDArray[np.uint8]) -> tuple[Float32s, Float32s]:
        """Return the points in open cells, sorted, and their weights (empty for ones)."""
        if not is_open.any():
            return np.empty(0, np.float32), np.empty(0, np.float32)

        def one(part: slice) -> tuple[Float32s, Float32s]:
            # As much as might be needed; what is not written to takes no memory.
            x = np.empty(part.stop - part.start + 1, np.float32)
            w = np.empty(x.size if self.has_weights else 0, np.float32)
            grid = self.grid
            n = gather_open(
                self._points[part], self._weights_of(part), grid.low, grid.per_unit, is_open, x, w
            )
            return x[:n], w[:n]

        found = self._run(one, self._parts)
        return sort_points([f[0] for f in found], [f[1] for f in found])

    def assign(self, lut: Float32s, out: NDArray[np.uint8]) -> None:
        """Write to ``out`` the entry nearest to each point, the lower one of two equally near."""
        grid = self.grid
        limits, base = limits_of(lut, grid)
        self._run(
            lambda part: assign_cells(
                self._points[part], grid.low, grid.per_unit, base, limits, out[part]
            ),
            self._parts,
        )


def limits_of(lut: Float32s, grid: Grid) -> tuple[Float32s, NDArray[np.uint8]]:
    """Return the last value of each entry, and how many of them lie below each cell.

    See `set_limits`.
    """
    limits, base = np.empty_like(lut), np.empty(grid.top + 2, np.uint8)
    set_limits(lut, grid.low, grid.per_unit, limits, base)
    return limits, base


@dataclass(frozen=True)
class Atoms:
    """Ascending atoms: weights, values less ``about``, and cells (−1 for points of open ones)."""

    w: Floats
    x: Floats
    cell: Ints
    about: float


def make_atoms(
    cells: Floats, is_open: NDArray[np.uint8], x: Float32s, w: Float32s, about: float
) -> Atoms:
    """Return the atoms of a block, less ``about``.

    Args:
        cells: sums of each cell; see `fill_cells`.
        is_open: which cells stand as their points, ``[cells]``.
        x: the points in open cells, sorted.
        w: their weights, empty for ones.
        about: subtracted from every value.
    """
    size = cells.shape[0] + x.size
    out_w, out_x, out_cell = np.empty(size), np.empty(size), np.empty(size, np.int32)
    n = merge_atoms(cells, is_open, x, w, about, out_w, out_x, out_cell)
    return Atoms(out_w[:n], out_x[:n], out_cell[:n], about)
