"""Pieces of planes of several channels, padded, from inputs however these lie in memory.

Every place is a vector of its channels, as activations often lie anyway. A piece is some rows of
one sample, or some small samples, so that all that is made of it is made while it is in the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.kernels import kernel_with
from palette_core._common.vector_code import LANES
from palette_core.builtins.operations._depthwise_lanes import TURNED, copy, turn

_Array = NDArray[Any]

_fused_kernel = kernel_with(fastmath={"reassoc", "contract", "nsz"})


class Lying(NamedTuple):
    """An input ``[N, channels, A, B]`` as kernels get it.

    Attributes:
        values: float32, ``[n]``, all that lies from the first value to the last.
        steps: ``[7]``: N, A, B; how far values are apart by sample, channel, A and B.
    """

    values: _Array
    steps: _Array

    @classmethod
    def of(cls, x: Tensor) -> Lying:
        """Return what a float32 tensor on the CPU is to kernels."""
        strides = x.stride()
        last = sum((n - 1) * step for n, step in zip(x.shape, strides, strict=True))
        values = x.as_strided((last + 1 if x.numel() else 0,), (1,)).numpy()
        return cls(values, np.array([x.shape[0], *x.shape[2:], *strides]))


@_fused_kernel
def _copy_channel(
    values: Any, begin: Any, apart: Any, out: Any, at: Any, step: Any, run: Any
) -> None:
    """Copy places of one channel, ``apart`` from one to the next."""
    # Unsigned, as numba looks at every other index for whether it counts from the end.
    begin, apart, at, step = np.uint64(begin), np.uint64(apart), np.uint64(at), np.uint64(step)
    for t in range(np.uint64(run)):
        out[at + t * step] = values[begin + t * apart]


@_fused_kernel
def _copy_run(
    values: Any,
    begin: Any,
    apart: Any,
    by_channel: Any,
    channels: Any,
    out: Any,
    at: Any,
    step: Any,
    run: Any,
) -> None:
    """Copy ``run`` places, ``apart`` from one to the next, to every ``step`` of ``out``."""
    if by_channel == 1 and channels == LANES:
        copy(values, begin, apart, out, at, step, run)
        return
    low = 0
    if apart == 1 and step == LANES and run >= TURNED:
        while low + TURNED <= channels:
            first = begin + low * by_channel
            turn(values, first, by_channel, out, at + low, run // TURNED)
            rest = run - TURNED  # the last ones, of which some are written twice
            turn(values, first + rest, by_channel, out, at + low + rest * LANES, 1)
            low += TURNED
    for c in range(low, channels):
        _copy_channel(values, begin + c * by_channel, apart, out, at + c, step, run)


@_fused_kernel
def fill(
    values: Any,
    steps: Any,
    first: Any,
    count: Any,
    low: Any,
    channels: Any,
    corner: Any,
    sizes: Any,
    out: Any,
) -> None:
    """Write a piece of the padded planes of some channels; what is outside of them is 0.

    Arrays and bounds:
        values, steps: see `Lying`.
        first: number of the first sample.
        count: how many samples.
        low: number of the first channel.
        channels: how many, `LANES` at most.
        corner: a pair, row and column where the piece begins; may be negative.
        sizes: a pair, its rows and columns.
        out: float32, ``[count * rows * columns * LANES at least]``.
    """
    top, left = max(0, -corner[0]), max(0, -corner[1])
    rows = min(sizes[0], steps[1] - corner[0]) - top
    columns = min(sizes[1], steps[2] - corner[1]) - left
    line, sample = sizes[1] * LANES, sizes[0] * sizes[1] * LANES
    if rows < sizes[0] or columns < sizes[1] or channels < LANES:
        for t in range(np.uint64(count * sample)):
            out[t] = 0.0
    if rows <= 0 or columns <= 0:
        return
    number, run, far, apart, down, step = rows, columns, steps[5], steps[6], line, LANES
    if steps[5] < steps[6]:  # rows are nearer to each other than columns
        number, run, far, apart, down, step = columns, rows, steps[6], steps[5], LANES, line
    if far == run * apart and down == run * step:
        number, run = 1, number * run
    for n in range(count):
        begin = (first + n) * steps[3] + low * steps[4]
        begin += (corner[0] + top) * steps[5] + (corner[1] + left) * steps[6]
        at = n * sample + top * line + left * LANES
        for r in range(number):
            here, there = begin + r * far, at + r * down
            _copy_run(values, here, apart, steps[4], channels, out, there, step, run)
