"""Scalar k-means where the points lie: the passes over all points as batched torch operations.

Blocks are taken many at a time, so that a device is asked as often for a thousand blocks as for
one. Only sums per cell or per bit pattern, and the points of opened cells, travel to the host,
where the small problems are solved by the same code as for host tensors. Sums of unweighted
points are kept in 64-bit integers, so that the order in which a device adds does not show;
weighted sums are added in float64, sorted by cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.threads import map_threads
from palette_core.builtins.clusterers.kmeans1d.floats import Asking, solving
from palette_core.builtins.clusterers.kmeans1d.grid import (
    Float32s,
    Grid,
    choose_grid,
    limits_of,
    sample_step,
    sort_points,
)
from palette_core.builtins.clusterers.kmeans1d.halves import solve_patterns
from palette_core.builtins.clusterers.kmeans1d.solver import Floats
from palette_core.builtins.clusterers.kmeans1d.sorted_fit import fit_sorted

_PATTERNS = 1 << 16
_TABLES = 64  # blocks of 16-bit points whose patterns are counted at once
_GROUP = 1 << 26  # points of float32 blocks that are taken at once, if not one block alone
_MOST_BLOCKS = 512
_CHUNK = 1 << 22  # points whose 64-bit cell numbers exist at once
_FRACTION = 1 << 30  # steps in which a point's place in its cell is counted


def fit_torch(
    points: Tensor, importance: Tensor | None, k: int, resolution: int | None
) -> tuple[Tensor, Tensor]:
    """Cluster each row of ``points`` ``[B, N]`` on its device; see `KMeans1d.fit`.

    Returns:
        ``lut`` ``[B, K]``, float64 for float64 points, else float32; ``codes`` ``[B, N]`` uint8.
    """
    points = points.contiguous()
    if importance is not None:
        importance = importance.to(points.device, torch.float32).contiguous()
    if points.dtype == torch.float64:
        return _fit_on_host(points, importance, k)
    blocks, count = points.shape
    halves = points.dtype != torch.float32
    step = _TABLES if halves else min(_MOST_BLOCKS, max(1, _GROUP // count))
    lut = torch.empty((blocks, k), dtype=torch.float32, device=points.device)
    codes = torch.empty(points.shape, dtype=torch.uint8, device=points.device)
    for at in range(0, blocks, step):
        rows = slice(at, min(blocks, at + step))
        weights = None if importance is None else _no_blanks(importance[rows])
        if halves:
            lut[rows] = _fit_halves(points[rows], weights, k, codes[rows])
        else:
            lut[rows] = _fit_floats(points[rows], weights, k, resolution, codes[rows])
    return lut, codes


def _fit_on_host(points: Tensor, weights: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    lut, codes = fit_sorted(points.cpu(), None if weights is None else weights.cpu(), k)
    return lut.to(points.device), codes.to(points.device)


def _no_blanks(importance: Tensor) -> Tensor:
    """Return importance with ones for the blocks in which nothing has any."""
    return torch.where(importance.any(dim=1, keepdim=True), importance, 1.0)


def _pieces(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    """Cut ``[B, N]`` into rows and columns of no more than a chunk, row after row."""
    blocks, count = shape
    step = max(1, _CHUNK // count)
    for row in range(0, blocks, step):
        for column in range(0, count, _CHUNK):
            yield slice(row, min(blocks, row + step)), slice(column, min(count, column + _CHUNK))


# --- 16-bit points ------------------------------------------------------------------------------


def _fit_halves(points: Tensor, weights: Tensor | None, k: int, codes: Tensor) -> Tensor:
    blocks, device = points.shape[0], points.device
    first = torch.arange(blocks, device=device)[:, None] * _PATTERNS
    groups = blocks * _PATTERNS
    dtype = torch.int64 if weights is None else torch.float64
    counts = torch.zeros(groups, dtype=dtype, device=device)
    for rows, columns in _pieces(points.shape):
        patterns = (_patterns(points[rows, columns]) + first[rows]).reshape(-1)
        if weights is None:
            counts += torch.bincount(patterns, minlength=groups)
        else:
            amounts = weights[rows, columns].reshape(-1, 1).double()
            counts += _sums_by(patterns, amounts, groups)[:, 0]
    tallies = counts.cpu().numpy().reshape(blocks, _PATTERNS)
    solved = map_threads(lambda tally: solve_patterns(tally, points.dtype, k), list(tallies))
    table = torch.from_numpy(np.concatenate([table for _, table in solved])).to(device)
    for rows, columns in _pieces(points.shape):
        codes[rows, columns] = table[_patterns(points[rows, columns]) + first[rows]]
    return torch.from_numpy(np.stack([lut for lut, _ in solved])).to(device)


def _patterns(points: Tensor) -> Tensor:
    return points.contiguous().view(torch.int16).long() & (_PATTERNS - 1)


# --- float32 points -----------------------------------------------------------------------------


def _fit_floats(
    points: Tensor, weights: Tensor | None, k: int, resolution: int | None, codes: Tensor
) -> Tensor:
    count = points.shape[1]
    samples = points[:, :: sample_step(count)].cpu().numpy()
    grids = [choose_grid(sample, count, k, resolution) for sample in samples]
    lut = torch.empty((len(grids), k), device=points.device)
    sortable = [b for b, grid in enumerate(grids) if grid is None]
    if sortable:
        some = None if weights is None else weights[sortable]
        lut[sortable], codes[sortable] = _fit_on_host(points[sortable], some, k)
        if len(sortable) == len(grids):
            return lut
    binned = [b for b, grid in enumerate(grids) if grid is not None]
    whole = not sortable
    rows = points if whole else points[binned]
    source = _Blocks(
        rows,
        weights if whole or weights is None else weights[binned],
        [grid for grid in grids if grid is not None],
    )
    found = _solve_together(source, k, exact=resolution is None)
    its_lut = torch.from_numpy(np.stack(found)).to(points.device)
    # Without the last limit of each, which is infinite.
    ends = [limits_of(one, grid)[0][:-1] for one, grid in zip(found, source.grids, strict=True)]
    limits = torch.from_numpy(np.stack(ends)).to(points.device)
    its_codes = codes if whole else torch.empty_like(rows, dtype=torch.uint8)
    for at, columns in _pieces(rows.shape):
        # limits at or above the point do not count: the lower of two equally near entries wins
        place = torch.searchsorted(limits[at], rows[at, columns].contiguous(), side="left")
        its_codes[at, columns] = place.to(torch.uint8)
    lut[binned] = its_lut
    if not whole:
        codes[binned] = its_codes
    return lut


def _solve_together(source: _Blocks, k: int, *, exact: bool) -> list[Float32s]:
    """Solve every block, each step of all of them with one look at the points."""
    waiting: list[Asking] = [
        solving(cells, grid, k, exact=exact)
        for cells, grid in zip(source.cells, source.grids, strict=True)
    ]
    luts: list[Any] = [None] * len(waiting)
    asked: dict[int, NDArray[np.uint8]] = {b: next(steps) for b, steps in enumerate(waiting)}
    while asked:
        points = source.gather(asked)

        def go_on(b: int, points: Any = points) -> tuple[int, NDArray[np.uint8] | None]:
            try:
                return b, waiting[b].send([sort_points(*points[b])])
            except StopIteration as done:
                luts[b] = done.value
                return b, None

        answers = map_threads(go_on, list(asked))
        asked = {b: is_open for b, is_open in answers if is_open is not None}
    return luts


class _Blocks:
    """Blocks of float32 points on a device, each with a grid of its own.

    Attributes:
        grids: the grids.
        cells: sums of the cells of each block; see `fill_cells`.
    """

    def __init__(self, points: Tensor, weights: Tensor | None, grids: list[Grid]) -> None:
        self.grids = grids
        self._points, self._weights = points, weights
        device = points.device
        self._low = torch.tensor([[float(g.low)] for g in grids], device=device)
        self._per_unit = torch.tensor([[float(g.per_unit)] for g in grids], device=device)
        self._top = torch.tensor([[float(g.top)] for g in grids], device=device)
        ends = np.cumsum([grid.top + 1 for grid in grids])
        self._edges = [0, *ends.tolist()]
        self._first = torch.tensor(self._edges[:-1], device=device)[:, None]
        filled = (self._counts() if weights is None else self._weighed()).cpu().numpy()
        self.cells: list[Floats] = np.split(filled, ends[:-1])

    def _cells_of(self, rows: slice, part: Tensor) -> Tensor:
        """Return the cells of points, counted from that of the first block on."""
        place = (part - self._low[rows]) * self._per_unit[rows] + 1.0
        place = torch.minimum(place.clamp(min=0.0), self._top[rows])
        return place.to(torch.int64)

    def _weighed(self) -> Tensor:
        assert self._weights is not None
        groups, device = self._edges[-1], self._points.device
        out = torch.zeros((groups, 3), dtype=torch.float64, device=device)
        for rows, columns in _pieces(self._points.shape):
            part = self._points[rows, columns]
            weights = self._weights[rows, columns].double()
            amounts = torch.stack([weights, weights * part, torch.ones_like(weights)], dim=-1)
            cell = (self._cells_of(rows, part) + self._first[rows]).reshape(-1)
            out += _sums_by(cell, amounts.reshape(-1, 3), groups)
        return out

    def _counts(self) -> Tensor:
        groups, device = self._edges[-1], self._points.device
        counts = torch.zeros(groups, dtype=torch.int64, device=device)
        steps = torch.zeros(groups, dtype=torch.int64, device=device)
        low, per_unit = self._low.double(), self._per_unit.double()
        for rows, columns in _pieces(self._points.shape):
            part = self._points[rows, columns]
            cell = self._cells_of(rows, part)
            place = (part.double() - low[rows]) * per_unit[rows] - (cell - 1)
            steps_in = (place.clamp(-1.0, 2.0) * _FRACTION).round().to(torch.int64)
            cell = (cell + self._first[rows]).reshape(-1)
            counts += torch.bincount(cell, minlength=groups)
            steps.scatter_add_(0, cell, steps_in.reshape(-1))
        sizes = torch.tensor([grid.top + 1 for grid in self.grids], device=device)
        block = torch.repeat_interleave(sizes)
        local = torch.arange(groups, device=device) - self._first[block, 0]
        start = (local - 1).double() / per_unit[block, 0] + low[block, 0]
        sums = counts * start + steps.double() / (_FRACTION * per_unit[block, 0])
        return torch.stack([counts.double(), sums], dim=1)

    def gather(
        self, asked: dict[int, NDArray[np.uint8]]
    ) -> dict[int, tuple[list[Float32s], list[Float32s]]]:
        """Return, for each block asked about, the points of its open cells and their weights."""
        nothing = np.empty(0, np.float32)
        found: dict[int, tuple[list[Float32s], list[Float32s]]] = {
            b: ([nothing], [nothing]) for b in asked
        }
        if not any(is_open.any() for is_open in asked.values()):
            return found
        flags = np.zeros(self._edges[-1], bool)
        for b, is_open in asked.items():
            flags[self._edges[b] : self._edges[b + 1]] = is_open
        opened = torch.from_numpy(flags).to(self._points.device)
        for rows, columns in _pieces(self._points.shape):
            part = self._points[rows, columns]
            chosen = opened[self._cells_of(rows, part) + self._first[rows]]
            ends = chosen.sum(dim=1).cumsum(dim=0).tolist()
            x = part[chosen].cpu().numpy()
            w = nothing
            if self._weights is not None:
                w = self._weights[rows, columns][chosen].cpu().numpy()
            for b, begin, end in zip(range(rows.start, rows.stop), [0, *ends], ends, strict=False):
                if b in found:
                    found[b][0].append(x[begin:end])
                    found[b][1].append(w[begin:end])
        return found


def _sums_by(group: Tensor, amounts: Tensor, groups: int) -> Tensor:
    """Sum the rows of float64 ``amounts`` by group, in an order that never changes."""
    order = torch.argsort(group, stable=True)
    lengths = torch.bincount(group, minlength=groups)
    return torch.segment_reduce(amounts[order], "sum", lengths=lengths, unsafe=True, initial=0.0)
