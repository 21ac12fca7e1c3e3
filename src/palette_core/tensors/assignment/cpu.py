"""One pass over all blocks in the computer's memory, the same for any number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.threads import map_threads, slices_of, thread_count
from palette_core.tensors.assignment import kernels
from palette_core.tensors.assignment._scalar_kernel import count_bounds
from palette_core.tensors.assignment._small_kernel import assign_small
from palette_core.tensors.assignment.blocks import Block, Workers
from palette_core.tensors.nearest import bounds_of

Floats = NDArray[Any]

_PART = 1 << 20  # points of one block that a thread takes at a time


def pass_over(
    blocks: list[Block],
    tables: Floats,
    codes: NDArray[np.uint8],
    sums: Floats,
    mass: Floats,
    cost: Floats,
    workers: Workers,
) -> None:
    """Assign every point of every block to its nearest entry, and add up.

    Args:
        blocks: B blocks.
        tables: ``[B, K, D]`` float64.
        codes: ``[B, N]``, a guess on entry; the nearest on return.
        sums: ``[B, K, D]`` float64, overwritten by Σ w x.
        mass: ``[B, K, D]`` float64, overwritten by Σ w.
        cost: ``[B]`` float64, overwritten.
        workers: who does it.
    """

    def one(block: Block, helpers: Workers | None) -> None:
        b = block.index
        job = Pass(block, tables[b], codes[b])
        cost[b] = job.run(tables[b], known=True, workers=helpers)
        # The chunks are added in order, so that any number of threads gives the same sums.
        sums[b] = np.add.reduce(job.sums, axis=0)
        mass[b] = np.add.reduce(job.mass, axis=0)

    workers.each(blocks, one)


def pass_over_small(
    points: Floats, importance: Floats | None, tables: Floats
) -> tuple[NDArray[np.uint8], Floats, Floats, Floats]:
    """Do so for blocks of at most `CHUNK` points, with few calls for all of them.

    Args:
        points: ``[B, N, D]``, contiguous.
        importance: the same, or None; see `make_blocks` for how it counts.
        tables: ``[B, K, D]`` float64.

    Returns:
        codes ``[B, N]``, sums and mass ``[B, K, D]``, cost ``[B]``.
    """
    codes = np.empty(points.shape[:2], np.uint8)
    sums, mass, cost = np.empty_like(tables), np.empty_like(tables), np.empty(len(points))
    for weights, blocks in _kinds(points, importance):

        def some(share: NDArray[np.int64], weights: Floats = weights) -> None:
            assign_small(points, weights, share, tables, codes, sums, mass, cost)

        map_threads(some, np.array_split(blocks, min(len(blocks), thread_count())))
    return codes, sums, mass, cost


def nearest_scalars(points: Tensor, entries: Tensor) -> Tensor:
    """Return what `nearest.assign` does, in a fraction of its time.

    Args:
        points: ``[B, N, 1]`` floating.
        entries: ``[B, K, 1]`` floating.
    """
    wide = torch.promote_types(torch.promote_types(points.dtype, entries.dtype), torch.float32)
    bounds, order = bounds_of(entries[..., 0], wide)
    limits = torch.nn.functional.pad(bounds, (0, 1), value=math.inf).numpy()
    x, codes = points[..., 0].detach().to(wide).contiguous().numpy(), order.numpy()
    out = np.empty(x.shape, np.uint8)
    blocks, count = x.shape

    def part(at: tuple[slice, slice]) -> None:
        rows, columns = at
        count_bounds(x[rows, columns], limits[rows], codes[rows], out[rows, columns])

    if blocks > 1:
        share = -(-blocks // thread_count())
        map_threads(part, [(rows, slice(None)) for rows in slices_of(blocks, share)])
    else:
        map_threads(part, [(slice(None), columns) for columns in slices_of(count, _PART)])
    return torch.from_numpy(out)


def _kinds(points: Floats, importance: Floats | None) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """Yield weights of each kind, and the blocks that have it."""
    every = np.arange(len(points))
    none = np.empty((*points.shape[:2], 0), np.float32)
    if importance is None:
        yield none, every
        return
    first = importance[:, :1, :1]
    plain = (importance == first).all(axis=(1, 2)) | ~importance.any(axis=(1, 2))
    by_point = (importance == importance[..., :1]).all(axis=(1, 2)) & ~plain
    each_has = ~plain & ~by_point
    for chosen, weights in ((plain, none), (by_point, importance[..., :1]), (each_has, importance)):
        if chosen.any():
            yield np.ascontiguousarray(weights), every[chosen]


class Pass:
    """Room for one pass over a block, kept from pass to pass.

    Args:
        block: N points.
        table: ``[K, D]`` float64, or one like it.
        codes: ``[N]`` uint8 to overwrite: a guess, or None.
    """

    def __init__(self, block: Block, table: Floats, codes: NDArray[np.uint8] | None = None) -> None:
        entries, dim = table.shape
        count = block.points.shape[0]
        self.block = block
        self.codes = np.zeros(count, dtype=np.uint8) if codes is None else codes
        self.sums = np.empty((block.chunks, entries, dim))
        self.mass = np.empty((block.chunks, entries, dim))
        self.worst = np.empty((block.chunks, 2))
        self.totals = np.empty(block.chunks)
        self.order = np.empty((entries, entries), np.uint8)
        self.order[:] = np.arange(entries)
        self.gaps = np.empty((entries, entries))
        self.drift = np.zeros(entries)
        self.lower = np.zeros(count, dtype=np.float32)

    def run(self, table: Floats, *, known: bool, workers: Workers | None = None) -> float:
        """Assign every point; return the cost. ``known``: the codes are a good guess."""
        if known:
            kernels.rank_neighbours(table, self.order, self.gaps)

        def part(first: int, last: int) -> None:
            kernels.assign_chunks(
                self.block.points, self.block.weights, table, self.order, self.gaps, self.drift,
                self.codes, self.lower, known, first, last,
                self.sums, self.mass, self.worst, self.totals,
            )  # fmt: skip

        self.share(part, workers)
        # Added in order, so that any number of threads gives the same sum.
        return float(sum(self.totals))

    def share(self, part: Callable[[int, int], None], workers: Workers | None) -> None:
        """Call for all chunks, some from ``first`` to before ``last`` by each worker."""
        shares = 1 if workers is None else min(workers.count, self.block.chunks)
        edges = [self.block.chunks * i // shares for i in range(shares + 1)]
        if workers is None:
            part(0, self.block.chunks)
        else:
            workers.map(lambda i: part(edges[i], edges[i + 1]), range(shares))
