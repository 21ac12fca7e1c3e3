"""Vector k-means on the CPU: many blocks, few threads, the same result for any number of them."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from palette_core.builtins.clusterers.kmeans_vector import sampling, seeding
from palette_core.builtins.clusterers.kmeans_vector.cells import as_cells
from palette_core.builtins.clusterers.kmeans_vector.lloyd import Lloyd
from palette_core.builtins.clusterers.kmeans_vector.options import (
    CELLS_TOL,
    SAMPLE_TOL,
    START_TOL,
    SWAP_TOL,
    KMeansVectorOptions,
    first_step,
    sample_size,
    trials_of,
    tries,
)
from palette_core.tensors.assignment.blocks import Block, Workers
from palette_core.tensors.assignment.cpu import Pass

Floats = NDArray[Any]


def fit_blocks(
    blocks: list[Block], n_entries: int, seed: int, options: KMeansVectorOptions
) -> list[tuple[Floats, NDArray[np.uint8] | None]]:
    """Return, for every block, a table ``[K', D]`` float64 with K' ≤ K, and codes ``[N]``.

    The codes were the nearest entries before these last moved; None where nothing moved.
    """
    with Workers() as workers:
        tables = workers.map(lambda block: _distinct(block, n_entries), blocks)
        open_blocks = [block for block, table in zip(blocks, tables, strict=True) if table is None]
        sampled = workers.map(lambda block: _sample(block, n_entries, seed, options), open_blocks)
        samples = [few.levels[0] for few in sampled]
        seedings = [tries(options.restarts, len(sample.points), n_entries) for sample in samples]
        tasks = [
            (sample, sample is not block, r)
            for sample, block, count in zip(samples, open_blocks, seedings, strict=True)
            for r in range(count)
        ]
        started = iter(workers.map(lambda task: _start(*task, n_entries, seed, options), tasks))
        best: dict[int, Floats] = {}
        for block, count in zip(open_blocks, seedings, strict=True):
            best[block.index] = min(itertools.islice(started, count), key=lambda one: one[0])[1]
        better = workers.map(lambda of: _better(of, best[of.levels[0].index], options), sampled)
        best = {b.index: table for b, table in zip(open_blocks, better, strict=True)}
        del sampled, samples, tasks  # as much memory as the blocks
        polished = workers.each(
            open_blocks, lambda b, helpers: _polish(b, best[b.index], options, helpers)
        )
    codes = {b.index: its_codes for b, its_codes in zip(open_blocks, polished, strict=True)}
    return [
        (best[block.index], codes[block.index]) if table is None else (table, None)
        for block, table in zip(blocks, tables, strict=True)
    ]


def assign_blocks(
    blocks: list[Block], tables: list[Floats], guesses: list[NDArray[np.uint8] | None]
) -> list[NDArray[np.uint8]]:
    """Return codes ``[N]`` of the nearest entry for every block; the lowest among equals.

    Args:
        blocks: what to assign.
        tables: ``[K', D]`` for each.
        guesses: codes that are nearly right, overwritten; or None.
    """

    def assign(block: Block, workers: Workers | None) -> NDArray[np.uint8]:
        guess = guesses[block.index]
        job = Pass(block, tables[block.index], guess)
        job.run(tables[block.index], known=guess is not None, workers=workers)
        return job.codes

    with Workers() as workers:
        return workers.each(blocks, assign)


def _distinct(block: Block, n_entries: int) -> Floats | None:
    table = np.empty((n_entries, block.points.shape[1]))
    found = sampling.distinct(block.points, block.weights, table)
    return table[:found] if found <= n_entries else None


def _start(
    sample: Block,
    is_part: bool,
    restart: int,
    n_entries: int,
    seed: int,
    options: KMeansVectorOptions,
) -> tuple[float, Floats]:
    """Seed and run Lloyd's iteration on a sample; return the cost there and the table.

    On a part of the block it need not run to the end: it is to tell which start is the best.
    """
    points, weights = sample.points, sample.weights
    dim = points.shape[1]
    trials = trials_of(options.trials, n_entries)
    draws = np.random.default_rng([seed, sample.index, 1 + restart]).random((n_entries, trials))
    table = np.empty((n_entries, dim))
    placed = seeding.seed(points, weights, draws, table)
    table = table[:placed]
    tol = max(options.tol, START_TOL) if is_part else options.tol
    total = Lloyd(sample, table).iterate(table, options.max_iter, tol)
    full = np.empty((n_entries, dim))
    full[:placed] = table
    # Spare entries are given places when the whole block is seen.
    full[placed:] = table[-1]
    return total, full


class _Few(NamedTuple):
    """Few points that stand for a block, then, where that helps, more of them.

    Iteration on them goes on until the cost falls by less than ``tol`` times itself.
    """

    levels: list[Block]
    tol: float


def _sample(block: Block, n_entries: int, seed: int, options: KMeansVectorOptions) -> _Few:
    size = sample_size(n_entries)
    if block.points.shape[0] <= size:
        return _Few([block], options.tol)
    cells = as_cells(block.points, block.weights, n_entries)
    if cells:
        # Here the last bit of the way costs little.
        return _Few([Block(block.index, *level) for level in cells], CELLS_TOL * options.tol)
    # One draw in each of as many equal parts: less noise than draws from all of it.
    draws = np.random.default_rng([seed, block.index, 0]).random(size)
    draws = (np.arange(size) + draws) / size
    chosen = np.empty(size, dtype=np.int64)
    scale = np.empty(size)
    sampling.coreset(block.points, block.weights, draws, chosen, scale)
    weights = scale[:, None]
    if block.weights.shape[1]:
        weights = weights * block.weights[chosen]
    weights = (weights / weights.max()).astype(np.float32)
    points, step = block.points[chosen], first_step(n_entries)
    levels = [
        Block(block.index, np.ascontiguousarray(points[::s]), np.ascontiguousarray(weights[::s]))
        for s in ((step, 1) if step > 1 else (1,))
    ]
    return _Few(levels, max(options.tol, SAMPLE_TOL) if step > 1 else options.tol)


def _better(few: _Few, table: Floats, options: KMeansVectorOptions) -> Floats:
    """Improve a table on few points that stand for a block, then on more of them."""
    table = _swap(few.levels[0], table, options, few.tol)
    for level in few.levels[1:]:
        Lloyd(level, table).iterate(table, options.max_iter, few.tol)
    return table


def _swap(block: Block, table: Floats, options: KMeansVectorOptions, tol: float) -> Floats:
    """Swap entries to better places of a sample while that lowers the cost."""
    job = Lloyd(block, table)
    total = job.iterate(table, options.max_iter, tol)
    job.look_around(table)
    wanted = table.shape[0] // 4
    for _ in range(options.swaps):
        if wanted < 1:
            break
        trial = Lloyd(block, table)
        moved = table.copy()
        made = seeding.swap_entries(
            block.points, block.weights, moved, job.codes, job.lower, job.order, wanted
        )
        if not made:
            break
        found = trial.iterate(moved, options.max_iter, max(tol, SWAP_TOL))
        if found < total * (1 - SWAP_TOL):
            job, table, total = trial, moved, found
            job.look_around(table)
        else:
            wanted = min(wanted, made) // 2
    return table


def _polish(
    block: Block, table: Floats, options: KMeansVectorOptions, workers: Workers | None
) -> NDArray[np.uint8]:
    """Run Lloyd's iteration on the whole block; return the codes before its last move."""
    job = Lloyd(block, table)
    job.iterate(table, options.max_iter, options.tol, workers)
    return job.codes
