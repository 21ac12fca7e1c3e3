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

from palette_core.clustering._scalar_passes import (
    assign_cells,
    cells_of,
    fill_cells,
    gather_open,
    merge_atoms,
)
from palette_core.clustering._scalar_solver import Floats, Ints
from palette_core.clustering._scalar_threads import parts_of

_SAMPLE = 2048
_PER_ENTRY = 64  # least number of cells per entry in the search
_FEWEST = 1024
_PER_CELL = 256  # points in an average cell, at most
_SEARCH_CELLS = 1 << 16  # as many as there are float16 values
_PART = 1 << 20  # points one thread takes at a time
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
        fewest = cells = max(_SEARCH_CELLS, min(k << 12, count // 8))
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
    values, weights = np.concatenate(x), np.concatenate(w)
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
        self._points = points
        self._run = run
        size = max(_PART, math.ceil(points.size * grid.top / _PART_CELLS))
        self._parts = parts_of(points.size, size)
        self._weights = np.empty(0, np.float32) if weights is None else weights
        self.has_weights = weights is not None
        self._filled = run(self._fill, self._parts)
        self.cells: Floats = self._filled[0]
        if len(self._filled) > 1:
            self.cells = self._filled[0].copy()
            for filled in self._filled[1:]:
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
        opened = np.flatnonzero(is_open)
        column = 2 if self.has_weights else 0
        counts = [int(filled[opened, column].sum()) for filled in self._filled]
        if not any(counts):
            return np.empty(0, np.float32), np.empty(0, np.float32)

        def one(numbered: tuple[int, slice]) -> tuple[Float32s, Float32s]:
            number, part = numbered
            x = np.empty(counts[number] + 1, np.float32)
            w = np.empty(x.size if self.has_weights else 0, np.float32)
            grid = self.grid
            n = gather_open(
                self._points[part], self._weights_of(part), grid.low, grid.per_unit, is_open, x, w
            )
            return x[:n], w[:n]

        found = self._run(one, list(enumerate(self._parts)))  # type: ignore[arg-type]
        return sort_points([f[0] for f in found], [f[1] for f in found])

    def assign(self, limits: Float32s, out: NDArray[np.uint8]) -> None:
        """Write to ``out`` how many of the ascending ``limits`` lie below each point."""
        grid = self.grid
        base, ended = code_table(grid, limits)
        self._run(
            lambda part: assign_cells(
                self._points[part], grid.low, grid.per_unit, base, ended, out[part]
            ),
            self._parts,
        )


def code_table(grid: Grid, limits: Float32s) -> tuple[NDArray[np.uint8], Float32s]:
    """Return how many limits lie in lower cells, per cell, and the limits with infinity added."""
    at = np.empty(limits.size, np.int32)
    cells_of(limits, grid.low, grid.per_unit, grid.top, at)
    base = np.searchsorted(at[np.isfinite(limits)], np.arange(grid.top + 1), side="left")
    return base.astype(np.uint8), np.append(limits, np.float32(np.inf))


@dataclass(frozen=True)
class Atoms:
    """Ascending atoms: weights, values less ``about``, and cells (−1 for points of open ones)."""

    w: Floats
    x: Floats
    cell: Ints
    about: float


def middle_of(source: Source) -> float:
    """Return the mean of the points inside the grid, as a float32."""
    weight, moment = source.cells[1:-1, :2].sum(axis=0)
    return float(np.float32(moment / weight)) if weight > 0.0 else 0.0


def make_atoms(source: Source, is_open: NDArray[np.uint8], about: float) -> Atoms:
    """Return the atoms of a block whose cells are open or closed as given, less ``about``."""
    x, w = source.gather(is_open)
    size = source.cells.shape[0] + x.size
    out_w, out_x, out_cell = np.empty(size), np.empty(size), np.empty(size, np.int32)
    n = merge_atoms(source.cells, is_open, x, w, about, out_w, out_x, out_cell)
    return Atoms(out_w[:n], out_x[:n], out_cell[:n], about)
