"""A compiled kernel that sums x xᵀ and W d xᵀ over the windows of depthwise convolutions.

d = before − x is made where planes of both are in the cache, and its outputs, a few hundred at a
time, are multiplied with x at once. So either input is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palette_core._common.kernels import kernel_with
from palette_core._common.threads import map_threads, slices_of
from palette_core.builtins.operations._depthwise_kernel import (
    TALL,
    add_plane,
    gather,
    settle,
    tables,
)
from palette_core.builtins.operations._depthwise_planes import Grid, Lying, fill, pieces_of
from palette_core.builtins.operations._window_shapes import Shape

_TILE = 512  # places taken at a time, and products in one float32 sum

_fused_kernel = kernel_with(fastmath={"reassoc", "contract", "nsz"})


@_fused_kernel
def _convolve(
    x: Any, weight: Any, r: Any, places: Any, at: Any, count: Any, mask: Any, out: Any
) -> None:
    """Write what row r of W makes of the windows that begin from ``at`` on; 0 of those masked."""
    first, count, e = np.uint64(at), np.uint64(count), 0
    out[:] = 0.0
    while e + 4 <= places.shape[0]:
        p, q = np.uint64(places[e] + at), np.uint64(places[e + 1] + at)
        u, v = np.uint64(places[e + 2] + at), np.uint64(places[e + 3] + at)
        a, b, c, d = weight[r, e], weight[r, e + 1], weight[r, e + 2], weight[r, e + 3]
        for t in range(count):
            out[t] += (a * x[p + t] + b * x[q + t]) + (c * x[u + t] + d * x[v + t])
        e += 4
    while e < places.shape[0]:
        p, a = np.uint64(places[e] + at), weight[r, e]
        for t in range(count):
            out[t] += a * x[p + t]
        e += 1
    for t in range(count):
        out[t] *= mask[first + t]


@_fused_kernel
def _add_products(y: Any, x: Any, places: Any, at: Any, count: Any, out: Any, r: Any) -> None:
    """Add products of outputs with each element of the windows that begin from ``at`` on."""
    count, e = np.uint64(count), 0
    while e + 4 <= places.shape[0]:
        p, q = np.uint64(places[e] + at), np.uint64(places[e + 1] + at)
        u, v = np.uint64(places[e + 2] + at), np.uint64(places[e + 3] + at)
        a = b = c = d = np.float32(0.0)
        for t in range(count):
            a += y[t] * x[p + t]
            b += y[t] * x[q + t]
            c += y[t] * x[u + t]
            d += y[t] * x[v + t]
        out[r, e] += a
        out[r, e + 1] += b
        out[r, e + 2] += c
        out[r, e + 3] += d
        e += 4
    while e < places.shape[0]:
        p, a = np.uint64(places[e] + at), np.float32(0.0)
        for t in range(count):
            a += y[t] * x[p + t]
        out[r, e] += a
        e += 1


@_fused_kernel
def _set_mask(mask: Any, count: Any, grid: Any, windows: Any) -> None:
    """Write 1 where a window of one of ``count`` samples begins, else 0."""
    width, line = grid[5], grid[6]
    mask[:] = 0.0
    for a in range(windows[0]):
        for n in range(count):
            for b in range(windows[1]):
                mask[a * line + n * width + b] = 1.0


@_fused_kernel
def _move_plane(
    d: Any, z: Any, span: Any, weight: Any, places: Any, mask: Any, outputs: Any, out: Any
) -> None:
    """Add Σ W d xᵀ over the windows of one plane to ``out`` ``[R, E]``.

    Arrays and bounds:
        d, z: the planes of what inputs have moved by and of inputs, flat.
        span: how far windows go.
        weight: ``[R, E]``.
        places, mask: see `_sum_channels` and `_set_mask`.
        outputs: to work in.
    """
    for at in range(0, span, _TILE):
        count = min(_TILE, span - at)
        for r in range(weight.shape[0]):
            _convolve(d, weight, r, places, at, count, mask, outputs)
            _add_products(outputs, z, places, at, count, out, r)


@_fused_kernel
def _sum_channels(
    x: Any,
    lying: Any,
    before: Any,
    beside: Any,
    weight: Any,
    low: Any,
    high: Any,
    grid: Any,
    windows: Any,
    places: Any,
    kinds: Any,
    members: Any,
    planes: Any,
    gap: Any,
    out: Any,
    moved: Any,
) -> None:
    """Write Σ x xᵀ to ``out`` ``[channels, E, E]``, add Σ W d xᵀ to ``moved`` ``[channels, R, E]``.

    Arrays and bounds:
        x, lying: values and steps of x, see `Lying`.
        before, beside: those of what x was.
        weight: ``[channels, R, E]`` float32.
        low, high: channels.
        grid: see `Grid.numbers`.
        windows: ``[2]``, their number by axis.
        places: ``[E]``, of the elements of the first window in what `fill` makes, flat.
        kinds, members: see `tables`.
        planes: in which sums take place, see `Grid.planes`; as many as have one sum in float32.
        gap: the same for d, one plane at a time.
    """
    width, line = grid[5], grid[6]
    held, slots, far = line // width, 2 * kinds[:, 6].max() + 1, 2 * kinds[:, 7].max() + 1
    sums = np.zeros((kinds.shape[0], slots, line), np.float32)
    cells = np.empty((planes.shape[1], kinds.shape[0], slots, far))
    mask, masked = np.zeros(windows[0] * line, np.float32), 0
    outputs = np.empty(_TILE, np.float32)
    counts = np.zeros(planes.shape[0], np.int64)
    for begin in range(low, high, planes.shape[1]):
        channels = min(planes.shape[1], high - begin)
        cells[:] = 0.0
        for first in range(0, lying[0], held * planes.shape[0]):
            taken = 0
            for at in range(first, min(lying[0], first + held * planes.shape[0]), held):
                count = fill(x, lying, at, begin, channels, grid, planes[taken])
                fill(before, beside, at, begin, channels, grid, gap[0])
                if count != masked:
                    _set_mask(mask, count, grid, windows)
                    masked = count
                span = (windows[0] - 1) * line + (count - 1) * width + windows[1]
                for c in range(channels):
                    d, z = gap[0, c].reshape(-1), planes[taken, c].reshape(-1)
                    for t in range(np.uint64(d.shape[0])):
                        d[t] -= z[t]
                    own, into = weight[begin + c], moved[begin + c]
                    _move_plane(d, z, span, own, places, mask, outputs, into)
                counts[taken] = count
                taken += 1
            for c in range(channels):
                for n in range(taken):
                    add_plane(planes[n, c], planes[n, c], counts[n], grid, windows, kinds, sums)
                settle(sums, held, width, kinds, windows[1], cells[c])
        for c in range(channels):
            gather(cells[c], windows, kinds, members, True, out[begin + c])


def depthwise_sums(
    x: Tensor,
    before: Tensor,
    matrices: Tensor,
    shape: Shape,
    padding: Sequence[int],
    windows: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return Σ x_w x_wᵀ and Σ W (before − x)_w x_wᵀ over all windows w, for each channel.

    That is ``[channels, E, E]`` and ``[channels, R, E]``, float64. For sums see
    `depthwise_products`.

    Args:
        x: ``[N, channels, A, B]`` float32 on the CPU, not padded, however it lies.
        before: of the same shape: what x was.
        matrices: ``[channels, R, E]`` float32, W.
        shape: of the convolution, of two axes.
        padding: before, by axis.
        windows: how many there are, by axis.
    """
    left, right = Lying.of(x), Lying.of(before)
    weight = matrices.contiguous().numpy()
    kinds, members = tables(shape, True)
    grid, counts = Grid.of(x, shape, padding, windows), np.array(windows)
    at_once = grid.at_once(x, windows, TALL)
    wide = grid.channels(x, at_once + 1)
    rows, _, line = (int(n) for n in grid.numbers[4:])
    places = np.array(
        [
            ((phase[0] * shape.stride[1] + phase[1]) * rows + place[0]) * line + place[1]
            for phase, place in shape.elements()
        ]
    )
    out, moved = np.empty((x.shape[1], *weight.shape[2:] * 2)), np.zeros(weight.shape)

    def some(channels: slice) -> None:
        planes, gap = grid.planes("planes", at_once, wide), grid.planes("other planes", 1, wide)
        bounds = (channels.start, channels.stop, grid.numbers, counts, places, kinds, members)
        _sum_channels(*left, *right, weight, *bounds, planes, gap, out, moved)

    map_threads(some, slices_of(x.shape[1], pieces_of(x.shape[1])))
    return torch.from_numpy(out), torch.from_numpy(moved)
