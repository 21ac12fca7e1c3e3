"""Scalar k-means of float32 points without sorting them.

The problem is solved with whole cells of a grid as atoms; cells that a boundary cuts, and cells
coarse enough to hide a cluster, are opened into their distinct points, and the problem is solved
again. In exact mode every cell that may hold a boundary of the optimum is opened; see
`_scalar_proof`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core.clustering._scalar_costs import segment_means
from palette_core.clustering._scalar_grid import (
    Atoms,
    Float32s,
    Grid,
    HostSource,
    Source,
    choose_grid,
    make_atoms,
    middle_of,
    sample_step,
)
from palette_core.clustering._scalar_proof import may_hold_a_cut
from palette_core.clustering._scalar_solver import Partition, solve_atoms
from palette_core.clustering._scalar_sorted import fit_sorted, spread, thresholds
from palette_core.clustering._scalar_threads import map_threads

_BIG = 1 << 21  # blocks of more points than this are taken one by one, with threads inside
_HIDDEN = 1.0 / 64  # of λ: what a closed cell's points may cost about their mean
_ROUNDS = 2


def fit_floats(
    points: Tensor, importance: Tensor | None, k: int, resolution: int | None
) -> tuple[Tensor, Tensor]:
    """Cluster each row of float32 ``points`` ``[B, N]``; see `KMeans1d.fit`.

    Returns:
        ``lut`` ``[B, K]`` float32; ``codes`` ``[B, N]`` uint8.
    """
    blocks, count = points.shape
    rows = points.contiguous()
    weights = None if importance is None else importance.contiguous()
    lut = np.empty((blocks, k), np.float32)
    codes = np.empty((blocks, count), np.uint8)

    def one(b: int, run: Callable[..., list[Any]] = _in_turn) -> None:
        row = rows[b].numpy()
        weight = None if weights is None else weights[b].numpy()
        if weight is not None and not weight.any():
            weight = None
        grid = choose_grid(row[:: sample_step(count)], count, k, resolution)
        if grid is None:
            some = None if weight is None else torch.from_numpy(weight)[None]
            its_lut, its_codes = fit_sorted(rows[b : b + 1], some, k)
            lut[b], codes[b] = its_lut[0].numpy(), its_codes[0].numpy()
            return
        source = HostSource(row, weight, grid, run)
        lut[b] = solve_source(source, k, exact=resolution is None)
        source.assign(limits_of(lut[b]), codes[b])

    if count > _BIG:
        for b in range(blocks):
            one(b, map_threads)
    else:
        map_threads(one, range(blocks))
    return torch.from_numpy(lut), torch.from_numpy(codes)


def _in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def limits_of(lut: Float32s) -> Float32s:
    """Return the largest float32 at or below each midpoint of neighbouring entries."""
    middles = thresholds(lut.astype(np.float64))
    limits = middles.astype(np.float32)
    above = limits.astype(np.float64) > middles
    limits[above] = np.nextafter(limits[above], np.float32(-np.inf))
    return limits


def solve_source(source: Source, k: int, *, exact: bool) -> Float32s:
    """Return the ``[K]`` LUT of a block given by the sums of its cells.

    Args:
        source: the block.
        k: entries.
        exact: open every cell that the optimum might cut, rather than those that are cut.
    """
    cells = source.cells
    is_open = np.zeros(cells.shape[0], np.uint8)
    is_open[[0, -1]] = cells[[0, -1], 0] > 0.0
    about = middle_of(source)
    atoms = make_atoms(source, is_open, about)
    best = solve_atoms(atoms.w, atoms.x, k)

    def again(found: NDArray[Any]) -> None:
        nonlocal atoms, best
        is_open[found] = 1
        atoms = make_atoms(source, is_open, about)
        best = solve_atoms(atoms.w, atoms.x, k, best.charge)

    while (found := _too_coarse(atoms, best, source.grid)).size:
        again(found)
    for _ in range(_ROUNDS):
        if not (found := _cut_cells(atoms, best, cells.shape[0])).size:
            break
        again(found)
    if exact:
        found = may_hold_a_cut(atoms.w, atoms.x, atoms.cell, best, k, source.grid.width)
        if found.size:
            again(found)
    entries = segment_means(atoms.w, atoms.x, best.cuts) + atoms.about
    return spread(entries, k).astype(np.float32)


def _too_coarse(atoms: Atoms, best: Partition, grid: Grid) -> NDArray[Any]:
    """Return closed cells whose points may cost enough for an entry of their own."""
    worst = 0.25 * atoms.w * grid.width**2
    return atoms.cell[(atoms.cell >= 0) & (worst > _HIDDEN * best.charge)]


def _cut_cells(atoms: Atoms, best: Partition, count: int) -> NDArray[Any]:
    """Return the closed cells on either side of each boundary, and their neighbours."""
    cuts = best.cuts[1:-1]
    sides = np.concatenate([atoms.cell[cuts - 1], atoms.cell[cuts]])
    sides = sides[sides >= 0]
    wide = np.zeros(count, bool)
    for near in (-1, 0, 1):
        wide[sides + near] = True
    wide[[0, -1]] = False  # these are open from the start, if anything is in them
    return np.flatnonzero(wide)
