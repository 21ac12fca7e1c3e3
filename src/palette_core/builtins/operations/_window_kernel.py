"""A compiled kernel that sums x xᵀ over the windows of convolutions with few coordinates.

Depthwise convolutions have as many small matrices as channels. Unfolded they take ``kernel``
times the memory of the input, and products of such narrow matrices are slow; here a few windows at
a time are multiplied while they are in the cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palette_core._common.kernels import kernel_with
from palette_core._common.threads import map_threads

_TILE = 512  # places taken at a time; few, so that they stay in the cache
_PIECES = 16  # of work at least, where there are so many samples and groups

_fused_kernel = kernel_with(fastmath={"reassoc", "contract", "nsz"})


@_fused_kernel
def _add_tile(a: Any, b: Any, places: Any, low: Any, high: Any, same: Any, out: Any) -> None:
    """Add the products of rows of ``a`` ``[E, TILE]`` with runs of ``b`` to ``out`` ``[E, E]``.

    Row j of the right factor is ``b`` from ``places[j] + low`` to ``places[j] + high``.
    """
    count = high - low
    for i in range(a.shape[0]):
        x = a[i, :count]
        j, end = 0, i + 1 if same else a.shape[0]
        while j + 4 <= end:
            y0 = b[places[j] + low : places[j] + high]
            y1 = b[places[j + 1] + low : places[j + 1] + high]
            y2 = b[places[j + 2] + low : places[j + 2] + high]
            y3 = b[places[j + 3] + low : places[j + 3] + high]
            s0 = s1 = s2 = s3 = np.float32(0.0)
            for t in range(count):
                s0 += x[t] * y0[t]
                s1 += x[t] * y1[t]
                s2 += x[t] * y2[t]
                s3 += x[t] * y3[t]
            out[i, j] += s0
            out[i, j + 1] += s1
            out[i, j + 2] += s2
            out[i, j + 3] += s3
            j += 4
        while j < end:
            y0 = b[places[j] + low : places[j] + high]
            s0 = np.float32(0.0)
            for t in range(count):
                s0 += x[t] * y0[t]
            out[i, j] += s0
            j += 1


@_fused_kernel
def _sort_phases(x: Any, stride: Any, out: Any) -> None:
    """Copy ``[channels, A, B, C]`` so that what is a stride apart comes to be neighbours.

    ``out`` is ``[channels, stride A, stride B, stride C, A′, B′, C′]``.
    """
    for c in range(x.shape[0]):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                line = x[c, i, j]
                row, column = i // stride[0], j // stride[1]
                if stride[2] == 2:  # apart, as the compiler then knows how to take two at a time
                    even = out[c, i % stride[0], j % stride[1], 0, row, column]
                    odd = out[c, i % stride[0], j % stride[1], 1, row, column]
                    for t in range(line.shape[0] // 2):
                        even[t] = line[2 * t]
                        odd[t] = line[2 * t + 1]
                    if line.shape[0] % 2:
                        even[line.shape[0] // 2] = line[line.shape[0] - 1]
                    continue
                for k in range(stride[2]):
                    into = out[c, i % stride[0], j % stride[1], k, row, column]
                    for t in range((line.shape[0] - k + stride[2] - 1) // stride[2]):
                        into[t] = line[k + t * stride[2]]


@_fused_kernel
def _add_windows(
    x: Any,
    y: Any,
    group: Any,
    low: Any,
    high: Any,
    stride: Any,
    places: Any,
    mask: Any,
    mine: Any,
    other: Any,
    same: Any,
    out: Any,
) -> None:
    """Add Σ over windows of (elements of x) (elements of y)ᵀ to ``out`` ``[E, E]`` float64.

    A window is known by the place of its first element in a plane that `_sort_phases` has made
    flat; its other elements have the same distance from there in every window. Between the windows
    of one row and those of the next are places that begin no window: ``mask`` is 0 there.

    Arrays and bounds:
        x, y: ``[N, G, channels, A, B, C]`` float32, padded; one and the same if ``same``, when
            only the lower triangle is added.
        group: which one; low, high: samples.
        stride: ``[3]`` int64, by spatial axis.
        places: ``[E]`` int64: of the coordinates of the first window.
        mask: float32, from the first window to the last.
        mine, other: zeros in the shape that `_sort_phases` makes; overwritten.
    """
    a = np.empty((places.shape[0], _TILE), np.float32)
    for n in range(low, high):
        left, right = x[n, group].reshape(-1), y[n, group].reshape(-1)
        if stride.max() > 1:
            _sort_phases(x[n, group], stride, mine)
            left = mine.reshape(-1)
            right = left
            if not same:
                _sort_phases(y[n, group], stride, other)
                right = other.reshape(-1)
        for at in range(0, mask.shape[0], _TILE):
            end = min(mask.shape[0], at + _TILE)
            counts = mask[at:end]
            for e in range(places.shape[0]):
                line = left[places[e] + at : places[e] + end]
                into = a[e]
                for t in range(end - at):
                    into[t] = line[t] * counts[t]
            _add_tile(a, right, places, at, end, same, out)


def window_products(
    x: Tensor,
    y: Tensor | None,
    groups: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return Σ x_w y_wᵀ over all windows w, for each group: ``[G, C, C]`` float64.

    C = channels of a group times kernel elements. Float32 sums of 512 products at most are added
    up in float64, on threads whose number does not matter.

    Args:
        x: ``[N, channels, spatial…]`` float32 on the CPU, padded.
        y: of the same shape; None is ``x``.
        groups: of channels.
        kernel: sizes by spatial axis, one to three of them.
        stride: by spatial axis.
        dilation: by spatial axis.
    """
    blank, channels, same = [1] * (3 - len(kernel)), x.shape[1] // groups, y is None
    steps = np.array([*blank, *stride])
    phases, places, mask = _plan(
        channels,
        np.array([*blank, *x.shape[2:]]),
        np.array([*blank, *kernel]),
        steps,
        np.array([*blank, *dilation]),
    )

    def shaped(z: Tensor) -> Any:
        return z.reshape(z.shape[0], groups, channels, *blank, *z.shape[2:]).contiguous().numpy()

    left = shaped(x)
    right = left if y is None else shaped(y)
    step = math.ceil(x.shape[0] / min(x.shape[0], math.ceil(_PIECES / groups)))
    starts = range(0, x.shape[0], step)
    out = np.zeros((len(starts), groups, len(places), len(places)))

    def one(piece: tuple[int, int]) -> None:
        number, group = piece
        low = starts[number]
        high = min(x.shape[0], low + step)
        mine = np.zeros(phases, np.float32)
        other = mine if same else np.zeros(phases, np.float32)
        into = out[number, group]
        _add_windows(left, right, group, low, high, steps, places, mask, mine, other, same, into)

    map_threads(one, list(itertools.product(range(len(starts)), range(groups))))
    total = torch.from_numpy(out.sum(axis=0))
    return total.tril() + total.tril(-1).mT if same else total


def _plan(channels: int, sizes: Any, kernel: Any, stride: Any, dilation: Any) -> Any:
    """Return the shape that `_sort_phases` makes, and places and mask of `_add_windows`.

    All but ``channels`` are given for three spatial axes.
    """
    counts = (sizes - dilation * (kernel - 1) - 1) // stride + 1
    shape = (channels, *stride.tolist(), *(-(-sizes // stride)).tolist())
    channel, *at = np.indices((channels, *kernel)).reshape(4, -1)
    apart = np.stack(at) * dilation[:, None]
    inside = (channel, *(apart % stride[:, None]), *(apart // stride[:, None]))
    mask = np.zeros(shape[4:], np.float32)
    mask[: counts[0], : counts[1], : counts[2]] = 1.0
    last = int(np.ravel_multi_index(tuple(counts - 1), mask.shape))
    return shape, np.ravel_multi_index(inside, shape), mask.reshape(-1)[: last + 1]
