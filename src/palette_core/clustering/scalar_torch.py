"""Scalar k-means where the points lie: the passes over all points as batched torch operations.

Only sums per cell or per bit pattern, and the points of opened cells, travel to the host, where
the small problem is solved by the same code as for host tensors. Sums of unweighted points are
kept in 64-bit integers, so that the order in which a device adds does not show; weighted sums
are added in float64, sorted by cell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core.clustering._scalar_floats import limits_of, solve_source
from palette_core.clustering._scalar_grid import (
    Float32s,
    Grid,
    choose_grid,
    sample_step,
    sort_points,
)
from palette_core.clustering._scalar_halves import solve_patterns
from palette_core.clustering._scalar_solver import Floats
from palette_core.clustering._scalar_sorted import fit_sorted

_PATTERNS = 1 << 16
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
        lut, codes = fit_sorted(points.cpu(), None if importance is None else importance.cpu(), k)
        return lut.to(points.device), codes.to(points.device)
    lut = torch.empty((points.shape[0], k), dtype=torch.float32)
    codes = torch.empty(points.shape, dtype=torch.uint8, device=points.device)
    for b in range(points.shape[0]):
        weights = None if importance is None else importance[b]
        if weights is not None and not bool(weights.any()):
            weights = None
        if points.dtype == torch.float32:
            lut[b] = _one_of_floats(points[b], weights, k, resolution, codes[b])
        else:
            lut[b] = _one_of_halves(points[b], weights, k, codes[b])
    return lut.to(points.device), codes


def _one_of_halves(points: Tensor, weights: Tensor | None, k: int, codes: Tensor) -> Tensor:
    counts: NDArray[Any] = np.zeros(_PATTERNS, np.int64 if weights is None else np.float64)
    for at in range(0, points.numel(), _CHUNK):
        patterns = points[at : at + _CHUNK].view(torch.int16).long() & (_PATTERNS - 1)
        if weights is None:
            counts += torch.bincount(patterns, minlength=_PATTERNS).cpu().numpy()
        else:
            amounts = weights[at : at + _CHUNK].double()[:, None]
            counts += _sums_by(patterns, amounts, _PATTERNS)[:, 0].cpu().numpy()
    lut, table = solve_patterns(counts, points.dtype, k)
    codes_of = torch.from_numpy(table).to(points.device)
    for at in range(0, points.numel(), _CHUNK):
        patterns = points[at : at + _CHUNK].view(torch.int16).long() & (_PATTERNS - 1)
        codes[at : at + _CHUNK] = codes_of[patterns]
    return torch.from_numpy(lut)


def _one_of_floats(
    points: Tensor, weights: Tensor | None, k: int, resolution: int | None, codes: Tensor
) -> Tensor:
    count = points.numel()
    sample = points[:: sample_step(count)].cpu().numpy()
    grid = choose_grid(sample, count, k, resolution)
    if grid is None:
        some = None if weights is None else weights.cpu()[None]
        lut, found = fit_sorted(points.cpu()[None], some, k)
        codes.copy_(found[0])
        return lut[0]
    source = TorchSource(points, weights, grid)
    best = solve_source(source, k, exact=resolution is None)
    limits = torch.from_numpy(limits_of(best)).to(points.device)
    for at in range(0, count, _CHUNK):
        part = points[at : at + _CHUNK]
        # limits at or above the point do not count: the lower of two equally near entries wins
        codes[at : at + _CHUNK] = torch.searchsorted(limits, part, side="left").to(torch.uint8)
    return torch.from_numpy(best)


class TorchSource:
    """A block of points on a device; see `HostSource`."""

    def __init__(self, points: Tensor, weights: Tensor | None, grid: Grid) -> None:
        self.grid = grid
        self._points, self._weights = points, weights
        self.has_weights = weights is not None
        self.cells: Floats = self._fill().cpu().numpy()

    def _cells_of(self, part: Tensor) -> Tensor:
        grid = self.grid
        place = (part - float(grid.low)) * float(grid.per_unit) + 1.0
        return place.clamp(0.0, float(grid.top)).to(torch.int64)

    def _fill(self) -> Tensor:
        groups = self.grid.top + 1
        if self._weights is None:
            return self._fill_counts(groups)
        out = torch.zeros((groups, 3), dtype=torch.float64, device=self._points.device)
        for at in range(0, self._points.numel(), _CHUNK):
            part = self._points[at : at + _CHUNK]
            weights = self._weights[at : at + _CHUNK].double()
            amounts = torch.stack([weights, weights * part, torch.ones_like(weights)], dim=1)
            out += _sums_by(self._cells_of(part), amounts, groups)
        return out

    def _fill_counts(self, groups: int) -> Tensor:
        device = self._points.device
        counts = torch.zeros(groups, dtype=torch.int64, device=device)
        steps = torch.zeros(groups, dtype=torch.int64, device=device)
        low, per_unit = float(self.grid.low), float(self.grid.per_unit)
        for at in range(0, self._points.numel(), _CHUNK):
            part = self._points[at : at + _CHUNK]
            cell = self._cells_of(part)
            counts += torch.bincount(cell, minlength=groups)
            place = ((part.double() - low) * per_unit - (cell - 1)).clamp(-1.0, 2.0)
            steps.scatter_add_(0, cell, (place * _FRACTION).round().to(torch.int64))
        start = torch.arange(-1, groups - 1, dtype=torch.float64, device=device) / per_unit + low
        sums = counts * start + steps.double() / (_FRACTION * per_unit)
        return torch.stack([counts.double(), sums], dim=1)

    def gather(self, is_open: NDArray[np.uint8]) -> tuple[Float32s, Float32s]:
        """Return the points in open cells, sorted, and their weights (empty for ones)."""
        nothing = np.empty(0, np.float32)
        if not is_open.any():
            return nothing, nothing
        flags = torch.from_numpy(is_open.astype(bool)).to(self._points.device)
        x, w = [], []
        for at in range(0, self._points.numel(), _CHUNK):
            part = self._points[at : at + _CHUNK]
            chosen = flags[self._cells_of(part)]
            x.append(part[chosen].cpu().numpy())
            if self._weights is not None:
                w.append(self._weights[at : at + _CHUNK][chosen].cpu().numpy())
        return sort_points(x, w or [nothing])


def _sums_by(group: Tensor, amounts: Tensor, groups: int) -> Tensor:
    """Sum the rows of float64 ``amounts`` by group, in an order that never changes."""
    order = torch.argsort(group, stable=True)
    lengths = torch.bincount(group, minlength=groups)
    return torch.segment_reduce(amounts[order], "sum", lengths=lengths, unsafe=True, initial=0.0)
