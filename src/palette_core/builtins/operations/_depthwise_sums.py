"""Sums over the windows of depthwise convolutions, each channel's alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.scratch import scratch
from palette_core._common.threads import map_threads, slices_of, thread_count
from palette_core._common.vector_code import LANES
from palette_core.builtins.operations._depthwise_kernel import sum_channels
from palette_core.builtins.operations._depthwise_layout import Layout
from palette_core.builtins.operations._depthwise_planes import Lying
from palette_core.builtins.operations._window_shapes import Shape

_Array = NDArray[Any]

_BESIDE = 16  # channels, or samples of few channels, that fill a vector
_SHARES = 4  # of work for each of several threads
_CELLS = 1 << 18  # sums held by one thread, where a block of channels has not more


def depthwise_products(
    x: Tensor, y: Tensor | None, shape: Shape, padding: Sequence[int], windows: Sequence[int]
) -> Tensor:
    """Return Σ x_w y_wᵀ over all windows w, for each channel: ``[channels, E, E]`` float64.

    E = elements of the kernel. Float32 sums of 64 products (256 where windows have one row or one
    column) are added up in float64; on threads whose number does not matter.

    Args:
        x: ``[N, channels, A, B]`` float32 on the CPU, not padded, however it lies.
        y: of the same shape; None is ``x``.
        shape: of the convolution, of two axes.
        padding: before, by axis.
        windows: how many there are, by axis.
    """
    return _sums(x, y, None, shape, padding, windows)[0]


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
    return _sums(x, before, matrices, shape, padding, windows)


def _sums(
    x: Tensor, y: Tensor | None, matrices: Tensor | None, shape: Shape, *where: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return Σ x yᵀ, or with matrices Σ x xᵀ and Σ W (y − x) xᵀ; see `depthwise_sums`."""
    channels = x.shape[1]
    beside = max(n for n in range(1, max(2, _BESIDE // channels + 1)) if x.shape[0] % n == 0)
    if beside == 1:
        return _by_channel(x, y, matrices, shape, *where)
    # Samples beside each other: most of each vector were empty else.
    size = (x.shape[0] // beside, beside * channels, *x.shape[2:])
    y = None if y is None else y.reshape(size)
    matrices = None if matrices is None else matrices.repeat(beside, 1, 1)
    made = _by_channel(x.reshape(size), y, matrices, shape, *where)
    total, moved = (each.view(beside, channels, *each.shape[1:]).sum(0) for each in made)
    return total, moved


def _by_channel(
    x: Tensor,
    y: Tensor | None,
    matrices: Tensor | None,
    shape: Shape,
    padding: Sequence[int],
    windows: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return `_sums`, with each channel in a lane of its own."""
    same = y is None or matrices is not None
    y = x if y is None else y
    turned = shape.kernel[1] > shape.kernel[0]
    if turned:  # of rows less is multiplied than of columns
        x, y = x.mT, y.mT
    layout = Layout.of(x, shape, tuple(padding), tuple(windows), turned=turned)
    kinds, members = layout.rows(symmetric=same)
    grid, places = layout.grid(), layout.places()
    channels, n_elements = x.shape[1], math.prod(shape.kernel)
    lanes = _lanes(channels)
    weight = _weight(matrices, lanes, n_elements)
    out = np.empty((channels, n_elements**2))
    moved = np.zeros((len(lanes), weight.shape[1], len(places), LANES))
    slots = int((2 * kinds[:, 2] + 1).sum()) * layout.tiles() * LANES
    left, right = Lying.of(x), Lying.of(y)

    def some(blocks: slice) -> None:
        piece = scratch("piece", (layout.piece(),), np.float32)
        other, outputs = piece, piece[:0]
        if y is not x:
            other = scratch("other piece", piece.shape, np.float32)
        if matrices is not None:
            outputs = scratch("outputs", (layout.outputs(),), np.float32)
        cells = scratch("cells", ((blocks.stop - blocks.start) * slots,), np.float64)
        cells[:] = 0.0
        found = scratch("pairs", (n_elements**2, LANES), np.float64)
        sum_channels(
            *left,
            *right,
            weight.reshape(-1),
            weight.shape[1],
            n_elements,
            blocks.start,
            blocks.stop,
            grid,
            kinds,
            members,
            places,
            same,
            piece,
            other,
            outputs,
            cells,
            found,
            out,
            moved.reshape(-1),
        )

    # Blocks beside each other are near in memory, too; sums are the same however they are shared.
    shares = thread_count() * (_SHARES if thread_count() > 1 else 1)
    at_once = max(1, min(-(-len(lanes) // shares), _CELLS // slots))
    map_threads(some, slices_of(len(lanes), at_once))
    total = torch.from_numpy(out).view(channels, n_elements, n_elements)
    return total, _by_lane(moved[:, :, :n_elements], lanes, channels)


def _lanes(channels: int) -> _Array:
    """Return ``[blocks, LANES]``: the channel of each lane, the last one's also where none is left.

    The last block ends where the channels do, and may begin inside of the one before it.
    """
    firsts = np.minimum(np.arange(0, channels, LANES), max(0, channels - LANES))
    lanes: _Array = np.minimum(firsts[:, None] + np.arange(LANES), channels - 1)
    return lanes


def _weight(matrices: Tensor | None, lanes: _Array, n_elements: int) -> _Array:
    """Return ``[blocks, R, E, LANES]`` of ``[channels, R, E]``; R is 0 where there is none."""
    if matrices is None:
        return np.empty((len(lanes), 0, n_elements, LANES), np.float32)
    return np.ascontiguousarray(matrices.numpy()[lanes].transpose(0, 2, 3, 1))


def _by_lane(moved: _Array, lanes: _Array, channels: int) -> Tensor:
    """Return ``[channels, R, E]`` of ``[blocks, R, E, LANES]``."""
    made = np.empty((channels, *moved.shape[1:3]))
    used = min(LANES, channels)
    made[lanes[:, :used]] = moved[..., :used].transpose(0, 3, 1, 2)
    return torch.from_numpy(made)
