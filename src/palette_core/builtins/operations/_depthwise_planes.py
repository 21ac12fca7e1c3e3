"""Planes of single channels, padded and in phases, from inputs however these lie in memory.

Activations often lie with their channels innermost: there a copy of all of them, one channel after
the other, takes as long as the sums that are made of it. So some channels are taken at a time,
while the values beside each other are in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.kernels import kernel_with
from palette_core._common.scratch import scratch
from palette_core.builtins.operations._window_shapes import Shape

_LINE = 128  # columns from which on samples are not put side by side any more
_BESIDE = 16  # channels in one piece of the cache
_HELD = 1 << 20  # values of planes held at once, where those of one channel are fewer
_PIECES = 16  # of work, where there are so many channels

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


class Grid(NamedTuple):
    """Layout of planes.

    Attributes:
        numbers: ``[7]``: strides, padding before, by axis; rows of a phase, columns of a sample,
            columns of all samples side by side.
        phases: how many there are.
    """

    numbers: _Array
    phases: int

    @classmethod
    def of(cls, x: Tensor, shape: Shape, padding: Sequence[int], windows: Sequence[int]) -> Grid:
        """Return that of an input ``[N, channels, A, B]``.

        Args:
            x: the input.
            shape: of the convolution.
            padding: before, by axis.
            windows: how many there are, by axis.
        """
        # Phases are as large as windows reach; what is padding there is in no plane.
        reach = [n + most for n, most in zip(windows, shape.furthest(), strict=True)]
        every = zip(x.shape[2:], padding, shape.stride, reach, strict=True)
        rows, width = (max(-(-(n + p) // s), far) for n, p, s, far in every)
        line = width * max(1, min(x.shape[0], _LINE // width))
        numbers = np.array([*shape.stride, *padding, rows, width, line])
        return cls(numbers, shape.stride[0] * shape.stride[1])

    def at_once(self, x: Tensor, windows: Sequence[int], most: int) -> int:
        """Return how many planes of samples side by side have one sum in float32.

        Args:
            x: see `of`.
            windows: likewise.
            most: products in such a sum.
        """
        beside = int(self.numbers[6] // self.numbers[5])
        return max(1, min(most // max(1, windows[0]), -(-x.shape[0] // beside)))

    def planes(self, name: str, at_once: int, channels: int) -> _Array:
        """Return zeros ``[at_once, channels, phases, rows * line]``, good until the next call."""
        rows, _, line = (int(n) for n in self.numbers[4:])
        planes = scratch(name, (at_once, channels, self.phases, rows * line), np.float32)
        planes[:] = 0.0
        return planes

    def channels(self, x: Tensor, at_once: int) -> int:
        """Return how many channels to take at once: more than one, where they lie together.

        Args:
            x: see `of`.
            at_once: planes that are held of each.
        """
        if x.stride(1) >= x.stride(3):
            return 1
        held = at_once * self.phases * int(self.numbers[4] * self.numbers[6])
        return max(1, min(_BESIDE, _HELD // held))


def pieces_of(channels: int) -> int:
    """Return how many channels to give to a thread at once; never depends on the threads."""
    return -(-channels // (_PIECES * _BESIDE)) * _BESIDE if channels > _PIECES else 1


@_fused_kernel
def _take_row(values: Any, begin: Any, apart: Any, out: Any) -> None:
    """Copy values of 16 channels that lie together, ``apart`` from one column to the next."""
    begin, apart = np.uint64(begin), np.uint64(apart)
    for t in range(np.uint64(out.shape[0])):
        for c in range(np.uint64(_BESIDE)):
            out[t, c] = values[begin + t * apart + c]


@_fused_kernel
def _take_apart(values: Any, begin: Any, apart: Any, out: Any, at: Any, count: Any) -> None:
    """Copy what is ``apart``, from ``begin`` on, to ``out`` from ``at`` on."""
    begin, apart, at = np.uint64(begin), np.uint64(apart), np.uint64(at)
    if apart == 1:
        for t in range(np.uint64(count)):
            out[at + t] = values[begin + t]
    elif apart == 2:  # apart from others, as the compiler knows how to take two at a time
        for t in range(np.uint64(count)):
            out[at + t] = values[begin + np.uint64(2) * t]
    else:
        for t in range(np.uint64(count)):
            out[at + t] = values[begin + apart * t]


@_fused_kernel
def fill(values: Any, steps: Any, first: Any, low: Any, channels: Any, grid: Any, out: Any) -> Any:
    """Lay samples side by side, padded, and what is a stride apart as neighbours.

    Arrays and bounds:
        values, steps: see `Lying`.
        first: number of the first sample.
        low: of the first channel.
        channels: how many.
        grid: see `Grid.numbers`.
        out: ``[channels at least, phases, rows * line]``, in which what is padding is 0 already.

    Returns:
        how many samples there are.
    """
    down, across, top, before, _, width, line = grid
    wide, phases, size = steps[2], out.shape[1], out.shape[2]
    count = min(steps[0] - first, line // width)
    together = channels == _BESIDE and steps[4] == 1
    row = np.empty((wide if together else 1, _BESIDE), np.float32)
    # Flat, with places that are counted here: a slice for each row takes as long as to copy it.
    source, flat = row.reshape(-1) if together else values, out.reshape(-1)
    for n in range(count):
        for a in range(steps[1]):
            begin = (first + n) * steps[3] + low * steps[4] + a * steps[5]
            by_channel, by_column = steps[4], steps[6]
            if together:
                _take_row(values, begin, by_column, row)
                begin, by_channel, by_column = 0, 1, _BESIDE
            phase, at = (a + top) % down * across, (a + top) // down * line + n * width
            for k in range(across):
                start = (k - before) % across
                found = (wide - start + across - 1) // across
                to = (phase + k) * size + at + (start + before) // across
                for c in range(channels):
                    origin = begin + c * by_channel + start * by_column
                    into = c * phases * size + to
                    _take_apart(source, origin, across * by_column, flat, into, found)
    return count
