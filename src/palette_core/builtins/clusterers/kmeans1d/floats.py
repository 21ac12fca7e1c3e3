"""Scalar k-means of float32 points without sorting them.

The problem is solved with whole cells of a grid as atoms; cells that a boundary cuts, and cells
coarse enough to hide a cluster, are opened into their distinct points, and the problem is solved
again. In exact mode every cell that may hold a boundary of the optimum is opened; see
`proof`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.kernels import is_compiled
from palette_core._common.scratch import scratch
from palette_core._common.threads import map_threads, slices_of, take_the_cores, thread_count
from palette_core.builtins.clusterers.kmeans1d.block import ROUNDS, middle_of, open_more
from palette_core.builtins.clusterers.kmeans1d.costs import segment_means
from palette_core.builtins.clusterers.kmeans1d.finite import check_finite
from palette_core.builtins.clusterers.kmeans1d.grid import (
    PART,
    Float32s,
    Grid,
    HostSource,
    Source,
    choose_grid,
    make_atoms,
    sample_step,
)
from palette_core.builtins.clusterers.kmeans1d.proof import may_hold_a_cut
from palette_core.builtins.clusterers.kmeans1d.small import FEW, fit_few
from palette_core.builtins.clusterers.kmeans1d.solver import Floats, Ints, solve_atoms
from palette_core.builtins.clusterers.kmeans1d.sorted_fit import fit_sorted, spread
from palette_core.builtins.clusterers.kmeans1d.whole import fit_block

_BIG = 1 << 21  # blocks of more points than this are taken one by one, with threads inside
_SHORT = 1 << 17  # blocks of fewer points than this are over too soon for threads to take turns
_LONG = 1 << 16  # points with weights, which take long enough for threads of torch to be in the way
_MANY = 4096  # blocks of a process from which it pays to have compiled what does one at once
_SPACE = 8192  # least number of atoms that there is room for, besides the cells


def fit_floats(
    points: Tensor, importance: Tensor | None, k: int, resolution: int | None
) -> tuple[Tensor, Tensor]:
    """Cluster each row of float32 ``points`` ``[B, N]``; see `KMeans1d.fit`.

    Returns:
        ``lut`` ``[B, K]`` float32; ``codes`` ``[B, N]`` uint8.

    Raises:
        WeightError: points that are NaN or infinite.
    """
    blocks, count = points.shape
    rows = points.contiguous()
    weights = None if importance is None else importance.contiguous()
    lut = np.empty((blocks, k), np.float32)
    codes = np.empty((blocks, count), np.uint8)

    if count <= FEW:
        check_finite(rows)
        some = np.empty((blocks, 0), np.float32) if weights is None else weights.numpy()

        def few(part: slice) -> None:
            fit_few(rows[part].numpy(), some[part], lut[part], codes[part])

        map_threads(few, slices_of(blocks, -(-blocks // thread_count())))
        return torch.from_numpy(lut), torch.from_numpy(codes)

    def one(b: int, run: Callable[..., list[Any]] = _in_turn) -> None:
        row = rows[b].numpy()
        weight = None if weights is None else weights[b].numpy()
        if weight is not None and not weight.any():
            weight = None
        grid = choose_grid(row[:: sample_step(count)], count, k, resolution)
        if at_once and grid is not None and fit_at_once(row, weight, grid, lut[b], codes[b]):
            return
        if at_once:
            check_finite(rows[b])
        if grid is None:
            some = None if weight is None else torch.from_numpy(weight)[None]
            its_lut, its_codes = fit_sorted(rows[b : b + 1], some, k)
            lut[b], codes[b] = its_lut[0].numpy(), its_codes[0].numpy()
            return
        source = HostSource(row, weight, grid, run)
        lut[b] = solve_source(source, k, exact=resolution is None)
        source.assign(lut[b], codes[b])

    # Sums over several parts are rounded otherwise.
    at_once = resolution is not None and count <= PART and k > 1
    at_once = at_once and (is_compiled(fit_block) or _pays_to_compile(blocks))
    if not at_once:  # else where it is not done at once, which finds them
        check_finite(rows)
    if weights is not None and points.numel() >= _LONG:  # torch has just looked at these
        take_the_cores()
    if count > _BIG:
        for b in range(blocks):
            one(b, map_threads)
    elif at_once or count >= _SHORT:
        map_threads(one, range(blocks))
    else:
        for b in range(blocks):
            one(b)
    return torch.from_numpy(lut), torch.from_numpy(codes)


def _pays_to_compile(blocks: int) -> bool:
    """Return whether so many more blocks make what does one at once worth compiling.

    For few it would take longer than it saves, on the first call on a machine.
    """
    _step_by_step[0] += blocks
    return _step_by_step[0] >= _MANY


_step_by_step = [0]  # blocks that were done so in this process


def fit_at_once(
    row: Float32s, weight: Float32s | None, grid: Grid, lut: Float32s, codes: NDArray[np.uint8]
) -> bool:
    """Cluster a block without the interpreter; return whether that could be done."""
    size, cells = row.size + 1, grid.top + 1
    atoms = cells + max(_SPACE, row.size // 8)
    # What is not written to takes no memory.
    points = scratch("points", (2, size), np.float32)
    sums = scratch("cells", (cells, 2 if weight is None else 3), np.float64)
    flags = scratch("flags", (cells + 1,), np.uint8)
    sums[:], flags[:] = 0, 0
    done = fit_block(
        row,
        np.empty(0, np.float32) if weight is None else weight,
        grid.low,
        grid.per_unit,
        grid.width,
        sums,
        flags,
        points,
        points.view(np.uint32),
        scratch("weights", (2, 0 if weight is None else size), np.float32),
        scratch("atoms", (5, atoms), np.float64),
        scratch("running sums", (atoms + 1, 3), np.float64),
        scratch("ints", (7, atoms + 1), np.int32),
        lut,
        codes,
    )
    return bool(done)


def _in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


Asking = Generator[NDArray[np.uint8], list[tuple[Float32s, Float32s]], Float32s]


def solve_source(source: Source, k: int, *, exact: bool) -> Float32s:
    """Return the ``[K]`` LUT of a block given by the sums of its cells; see `solving`."""
    steps = solving(source.cells, source.grid, k, exact=exact)
    asked = next(steps)
    while True:
        try:
            asked = steps.send([source.gather(asked)])
        except StopIteration as done:
            lut: Float32s = done.value
            return lut


def solving(cells: Floats, grid: Grid, k: int, *, exact: bool) -> Asking:
    """Solve a block step by step, so that many can be looked at together.

    Yields flags of the cells whose points are needed, ``[cells]`` uint8; expects these points,
    sorted, and their weights (empty for ones), as the only element of a list, out of which they
    are taken: nobody else should hold on to them. Returns the ``[K]`` LUT.

    Args:
        cells: sums of each cell; see `fill_cells`.
        grid: the cells.
        k: entries.
        exact: open every cell that the optimum might cut, rather than those that are cut.
    """
    is_open = np.zeros(cells.shape[0], np.uint8)
    is_open[[0, -1]] = cells[[0, -1], 0] > 0.0
    about = middle_of(cells)
    # The proof opens the cells at boundaries, too, and more of them.
    charge, rounds = 0.0, ROUNDS if exact else 0
    while True:
        atoms = make_atoms(cells, is_open, *(yield is_open).pop(), about)
        best = solve_atoms(atoms.w, atoms.x, k, charge, centred=exact)
        charge = best.charge
        rounds = open_more(atoms.w, atoms.cell, best.cuts, charge, grid.width, rounds, is_open)
        if rounds < 0:
            break
    if exact:
        found = may_hold_a_cut(atoms.w, atoms.x, atoms.cell, best, k, grid.width)
        if found.size:
            is_open[found] = 1
            del atoms, best  # there will be many more
            atoms = make_atoms(cells, is_open, *(yield is_open).pop(), about)
            w, x = atoms.w, atoms.x
            del atoms  # with the cells, which are not needed any more
            best = solve_atoms(w, x, k, charge)
            return _entries(w, x, best.cuts, about, k)
    return _entries(atoms.w, atoms.x, best.cuts, about, k)


def _entries(w: Floats, x: Floats, cuts: Ints, about: float, k: int) -> Float32s:
    entries = segment_means(w, x, cuts) + about
    return spread(entries, k).astype(np.float32)
