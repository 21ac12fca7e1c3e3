"""A compiled kernel that sums W d xᵀ over the windows of depthwise convolutions.

Outputs of the gap d, a few hundred at a time, are multiplied with x while they are in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palette_core._common.kernels import kernel_with
from palette_core._common.threads import map_threads, slices_of
from palette_core.builtins.operations._depthwise_planes import Grid, Lying, fill, pieces_of
from palette_core.builtins.operations._window_shapes import Shape

_TILE = 512  # places taken at a time, and products in one float32 sum

_fused_kernel = kernel_with(fastmath={"reassoc", "contract", "nsz"})


@_fused_kernel
def _convolve(x: Any, weight: Any, places: Any, at: Any, mask: Any, out: Any) -> None:
    """Write what W makes of the windows that begin from ``at`` on; of others ``mask`` makes 0."""
    count, e = np.uint64(out.shape[0]), 0
    out[:] = 0.0
    while e + 4 <= places.shape[0]:
        p, q = np.uint64(places[e] + at), np.uint64(places[e + 1] + at)
        r, s = np.uint64(places[e + 2] + at), np.uint64(places[e + 3] + at)
        a, b, c, d = weight[e], weight[e + 1], weight[e + 2], weight[e + 3]
        for t in range(count):
            out[t] += (a * x[p + t] + b * x[q + t]) + (c * x[r + t] + d * x[s + t])
        e += 4
    while e < places.shape[0]:
        p, a = np.uint64(places[e] + at), weight[e]
        for t in range(count):
            out[t] += a * x[p + t]
        e += 1
    out *= mask[at : at + out.shape[0]]


@_fused_kernel
def _add_products(y: Any, x: Any, places: Any, at: Any, out: Any) -> None:
    """Add products of outputs with each element of the windows that begin from ``at`` on."""
    count, e = np.uint64(y.shape[0]), 0
    while e + 4 <= places.shape[0]:
        p, q = np.uint64(places[e] + at), np.uint64(places[e + 1] + at)
        r, s = np.uint64(places[e + 2] + at), np.uint64(places[e + 3] + at)
        a = b = c = d = np.float32(0.0)
        for t in range(count):
            a += y[t] * x[p + t]
            b += y[t] * x[q + t]
            c += y[t] * x[r + t]
            d += y[t] * x[s + t]
        out[e] += a
        out[e + 1] += b
        out[e + 2] += c
        out[e + 3] += d
        e += 4
    while e < places.shape[0]:
        p, a = np.uint64(places[e] + at), np.float32(0.0)
        for t in range(count):
            a += y[t] * x[p + t]
        out[e] += a
        e += 1


@_fused_kernel
def _move_channels(
    gap: Any,
    lying: Any,
    x: Any,
    beside: Any,
    weight: Any,
    low: Any,
    high: Any,
    grid: Any,
    windows: Any,
    places: Any,
    left: Any,
    right: Any,
    out: Any,
) -> None:
    """Add Σ W d xᵀ over windows to ``out`` ``[channels, R, E]`` float64.

    Arrays and bounds:
        gap, lying: values and steps of d, see `Lying`.
        x, beside: those of x.
        weight: ``[channels, R, E]`` float32.
        low, high: channels.
        grid: see `Grid.numbers`.
        windows: ``[2]``, their number by axis.
        places: ``[E]``, of the elements of the first window in what `fill` makes, flat.
        left, right: planes to work in, one at a time, see `Grid.planes`.
    """
    width, line = grid[5], grid[6]
    mask = np.zeros((windows[0], line), np.float32)
    outputs = np.empty(_TILE, np.float32)
    for begin in range(low, high, left.shape[1]):
        channels = min(left.shape[1], high - begin)
        for first in range(0, lying[0], line // width):
            count = fill(gap, lying, first, begin, grid, left[0, :channels])
            fill(x, beside, first, begin, grid, right[0, :channels])
            mask[:] = 0.0
            for n in range(count):
                mask[:, n * width : n * width + windows[1]] = 1.0
            span = (windows[0] - 1) * line + (count - 1) * width + windows[1]
            for c in range(channels):
                d, z, into = left[0, c].reshape(-1), right[0, c].reshape(-1), out[begin + c]
                for at in range(0, span, _TILE):
                    y = outputs[: min(_TILE, span - at)]
                    for r in range(weight.shape[1]):
                        _convolve(d, weight[begin + c, r], places, at, mask.reshape(-1), y)
                        _add_products(y, z, places, at, into[r])


def depthwise_moves(
    gap: Tensor,
    x: Tensor,
    matrices: Tensor,
    shape: Shape,
    padding: Sequence[int],
    windows: Sequence[int],
) -> Tensor:
    """Return Σ W d_w x_wᵀ over all windows w, for each channel: ``[channels, R, E]`` float64.

    Args:
        gap: ``[N, channels, A, B]`` float32 on the CPU, not padded, however it lies: d.
        x: of the same shape.
        matrices: ``[channels, R, E]`` float32, W.
        shape: of the convolution, of two axes.
        padding: before, by axis.
        windows: how many there are, by axis.
    """
    left, right = Lying.of(gap), Lying.of(x)
    weight = matrices.contiguous().numpy()
    grid, counts = Grid.of(x, shape, padding, windows), np.array(windows)
    rows, _, line = (int(n) for n in grid.numbers[4:])
    places = np.array(
        [
            ((phase[0] * shape.stride[1] + phase[1]) * rows + place[0]) * line + place[1]
            for phase, place in shape.elements()
        ]
    )
    wide = grid.channels(x, 2)
    out = np.zeros(weight.shape)

    def some(channels: slice) -> None:
        planes = [grid.planes(name, 1, wide) for name in ("planes", "other planes")]
        bounds = (channels.start, channels.stop, grid.numbers, counts, places)
        _move_channels(*left, *right, weight, *bounds, *planes, out)

    map_threads(some, slices_of(x.shape[1], pieces_of(x.shape[1])))
    return torch.from_numpy(out)
