"""Blocks of points in the computer's memory, and the threads that work on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.threads import on_a_thread
from palette_core.tensors.assignment.kernels import CHUNK

Floats = NDArray[Any]
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_SHARED = 1 << 16  # blocks of more points are worked on by all threads together


@dataclass(frozen=True)
class Block:
    """One block: ``points`` ``[N, D]``, ``weights`` ``[N, 0]``, ``[N, 1]`` or ``[N, D]``."""

    index: int
    points: Floats
    weights: Floats

    @property
    def chunks(self) -> int:
        """Number of pieces that threads may share."""
        return math.ceil(len(self.points) / CHUNK)


class Workers:
    """A pool of as many threads as torch uses; kernels release the GIL."""

    def __init__(self) -> None:
        self.count = 1 if on_a_thread() else max(1, torch.get_num_threads())
        self._pool = ThreadPoolExecutor(self.count) if self.count > 1 else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, call: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> list[ResultT]:
        """Return ``[call(item) for item in items]``."""
        work = list(items)
        # One thing to do is done here: what memory it needs is at hand, unlike in a new thread.
        if self._pool is None or len(work) == 1:
            return [call(item) for item in work]
        return list(self._pool.map(call, work))

    def each(
        self, blocks: list[Block], call: Callable[[Block, Workers | None], ResultT]
    ) -> list[ResultT]:
        """Call for every block: with these workers for a large one, alone for a small one.

        One that would leave workers idle is large with less.
        """
        most = _SHARED if len(blocks) >= self.count else CHUNK
        small = [block for block in blocks if block.points.shape[0] <= most]
        done = {
            b.index: r for b, r in zip(small, self.map(lambda b: call(b, None), small), strict=True)
        }
        for block in blocks:
            if block.index not in done:
                done[block.index] = call(block, self)
        return [done[block.index] for block in blocks]


def as_floats(points: Tensor) -> Floats:
    """Return points as the kernels take them: contiguous, float32 or float64."""
    points = points.detach()
    if points.dtype not in (torch.float32, torch.float64):
        points = points.float()
    data: Floats = points.contiguous().numpy()
    return data


def make_blocks(points: Tensor, importance: Tensor | None) -> list[Block]:
    """Return a block per row of points ``[B, N, D]`` and elementwise importance.

    Importance that is zero or the same everywhere in a block is none; one that is the same for
    all coordinates of each point becomes one weight per point.
    """
    data = as_floats(points)
    none = np.empty((data.shape[1], 0), dtype=np.float32)
    if importance is None:
        return [Block(b, part, none) for b, part in enumerate(data)]
    given = importance.detach().to(torch.float32).contiguous().numpy()
    return [Block(b, part, _weights(given[b], none)) for b, part in enumerate(data)]


def _weights(given: Floats, none: Floats) -> Floats:
    if not given.any() or bool((given == given[0, 0]).all()):
        return none
    first = given[:, :1]
    return np.ascontiguousarray(first) if bool((given == first).all()) else given
