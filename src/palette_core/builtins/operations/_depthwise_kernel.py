"""A compiled kernel that sums x xᵀ over the windows of depthwise convolutions.

Windows overlap: what elements i and j of a window contribute depends on their distance alone, but
for the windows at the edges. So one product of the plane with itself is made for each distance,
13 in place of 45 for 3×3 elements, 41 in place of 325 for 5×5. Of each product the columns are
summed on their own, and the rows at the edges kept apart from those that all windows share; sums
for each pair of elements are put together of these at the end. Nothing is taken away again, so
nothing is lost where the edges hold nearly all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.kernels import kernel_with
from palette_core._common.threads import map_threads, slices_of
from palette_core.builtins.operations._window_correlations import kinds_of
from palette_core.builtins.operations._window_shapes import Shape

_LINE = 128  # columns from which on samples are not put side by side any more
_TALL = 128  # products in one float32 sum
PIECES = 16  # of work, where there are so many channels

_Array = NDArray[Any]

_fused_kernel = kernel_with(fastmath={"reassoc", "contract", "nsz"})


@_fused_kernel
def fill(x: Any, first: Any, channel: Any, grid: Any, out: Any) -> Any:
    """Lay samples side by side, padded, and what is a stride apart as neighbours.

    Args:
        x: ``[N, channels, A, B]`` float32.
        first: number of the first sample.
        channel: which one.
        grid: ``[6]``: strides, padding before, by axis; rows of a phase, columns of a sample.
        out: ``[phases, rows * line]``, in which what is padding is 0 already.

    Returns:
        how many samples there are.
    """
    down, across, top, before, rows, width = grid
    line = out.shape[1] // rows
    count = min(x.shape[0] - first, line // width)
    for n in range(count):
        for a in range(x.shape[2]):
            values = x[first + n, channel, a]
            phase, row = (a + top) % down, (a + top) // down
            for k in range(across):
                start = (k - before) % across
                at = row * line + n * width + (start + before) // across
                found = (values.shape[0] - start + across - 1) // across
                into = out[phase * across + k, at : at + found]
                if across == 1:
                    into[:] = values
                elif across == 2:  # apart, as the compiler then knows how to take two at a time
                    for t in range(found):
                        into[t] = values[start + 2 * t]
                else:
                    for t in range(found):
                        into[t] = values[start + across * t]
    return count


@_fused_kernel
def _add_rows(left: Any, right: Any, p: Any, q: Any, line: Any, rows: Any, out: Any) -> None:
    """Add products of ``rows`` rows by column, from ``p`` in ``left`` and ``q`` in ``right`` on."""
    # Unsigned, as numba looks at every other index for whether it counts from the end.
    width, line, p, q = np.uint64(out.shape[0]), np.uint64(line), np.uint64(p), np.uint64(q)
    second, third = line + line, line + line + line
    for _ in range(rows // 4):
        for t in range(width):
            a, b = p + t, q + t
            near = left[a] * right[b] + left[a + line] * right[b + line]
            far = left[a + second] * right[b + second] + left[a + third] * right[b + third]
            out[t] += near + far
        p, q = p + line + third, q + line + third
    for _ in range(rows % 4):
        for t in range(width):
            out[t] += left[p + t] * right[q + t]
        p, q = p + line, q + line


@_fused_kernel
def _add_kind(
    left: Any,
    right: Any,
    p: Any,
    q: Any,
    line: Any,
    windows: Any,
    further: Any,
    columns: Any,
    sums: Any,
) -> None:
    """Add products of rows: those that all windows share in one slot, each other in its own.

    There are ``windows`` along the rows, and those of this kind go ``further`` by so much. For the
    rest see `_add_rows`; ``sums`` is ``[slots, columns at least]`` float32.
    """
    edge, shared, slot = min(further, windows), max(0, windows - further), 0
    for r in range(windows + further):
        if r > edge and r < edge + shared:
            continue
        rows = shared if r == edge and shared > 0 else 1
        _add_rows(left, right, p + r * line, q + r * line, line, rows, sums[slot, :columns])
        slot += 1


@_fused_kernel
def _settle(sums: Any, count: Any, width: Any, further: Any, windows: Any, cells: Any) -> None:
    """Add sums by column to ``cells``: those that all windows share in one, the edges apart.

    Args:
        sums: ``[slots, columns]`` float32, of ``count`` samples; set to 0.
        count: of samples, each ``width`` columns.
        width: see above.
        further: how far the windows of a kind go, along the columns.
        windows: how many there are, along the columns.
        cells: ``[slots, slots]`` float64.
    """
    for slot in range(sums.shape[0]):
        into = cells[slot]
        for n in range(count):
            columns = sums[slot, n * width :]
            if windows <= further:
                for t in range(windows + further):
                    into[t] += columns[t]
                continue
            shared = np.float64(0.0)
            for t in range(further, windows):
                shared += np.float64(columns[t])
            into[further] += shared
            for t in range(further):
                into[t] += columns[t]
                into[further + 1 + t] += columns[windows + t]
        sums[slot] = 0.0


@_fused_kernel
def _add_channels(
    x: Any,
    y: Any,
    low: Any,
    high: Any,
    grid: Any,
    windows: Any,
    kinds: Any,
    members: Any,
    same: Any,
    line: Any,
    out: Any,
) -> None:
    """Write Σ over windows of (elements of x) (elements of y)ᵀ to ``out`` ``[channels, E, E]``.

    Arrays and bounds:
        x, y: ``[N, channels, A, B]`` float32; one and the same if ``same``, when symmetric pairs
            are written twice.
        low, high: channels.
        grid: see `fill`.
        windows: ``[2]``, their number by axis.
        kinds: ``[kinds, 8]``: phases; place of the foremost first element, by axis; that of the
            second; how far others go.
        members: ``[pairs, 5]``: kind, how far from the foremost, by axis, and both elements.
        line: columns of all samples side by side.
    """
    rows, width = grid[4], grid[5]
    phases = grid[0] * grid[1]
    most_down, most_across = kinds[:, 6].max(), kinds[:, 7].max()
    left = np.zeros((phases, rows * line), np.float32)
    right = left if same else np.zeros((phases, rows * line), np.float32)
    sums = np.zeros((kinds.shape[0], 2 * most_down + 1, line), np.float32)
    cells = np.empty((kinds.shape[0], 2 * most_down + 1, 2 * most_across + 1))
    held = line // width
    for channel in range(low, high):
        cells[:] = 0.0
        since = 0
        for first in range(0, x.shape[0], held):
            count = fill(x, first, channel, grid, left)
            if not same:
                fill(y, first, channel, grid, right)
            since += windows[0]
            last = first + held >= x.shape[0]
            for k in range(kinds.shape[0]):
                a, b, down, across = left[kinds[k, 0]], right[kinds[k, 1]], kinds[k, 6], kinds[k, 7]
                p = kinds[k, 2] * line + kinds[k, 3]
                q = kinds[k, 4] * line + kinds[k, 5]
                columns = (count - 1) * width + windows[1] + across
                _add_kind(a, b, p, q, line, windows[0], down, columns, sums[k])
                if last or since + windows[0] > _TALL:
                    _settle(sums[k, : 2 * down + 1], held, width, across, windows[1], cells[k])
            if since + windows[0] > _TALL:
                since = 0
        for m in range(members.shape[0]):
            k, above, aside, i, j = members[m]
            found = 0.0
            for slot in range(above, above + min(windows[0], kinds[k, 6] + 1)):
                for t in range(aside, aside + min(windows[1], kinds[k, 7] + 1)):
                    found += cells[k, slot, t]
            out[channel, i, j] = found
            if same:
                out[channel, j, i] = found


def depthwise_products(
    x: Tensor, y: Tensor | None, shape: Shape, padding: Sequence[int], windows: Sequence[int]
) -> Tensor:
    """Return Σ x_w y_wᵀ over all windows w, for each channel: ``[channels, E, E]`` float64.

    E = elements of the kernel. Float32 sums of 128 products at most, or of one column, are added
    up in float64; on threads whose number does not matter.

    Args:
        x: ``[N, channels, A, B]`` float32 on the CPU, not padded.
        y: of the same shape; None is ``x``.
        shape: of the convolution, of two axes.
        padding: before, by axis.
        windows: how many there are, by axis.
    """
    same = y is None
    left = x.contiguous().numpy()
    right = left if y is None else y.contiguous().numpy()
    kinds, members = _tables(shape, same)
    grid, line = grid_of(tuple(x.shape), shape, padding, windows)
    n_elements = math.prod(shape.kernel)
    out = np.empty((x.shape[1], n_elements, n_elements))

    def some(channels: slice) -> None:
        low, high, counts = channels.start, channels.stop, np.array(windows)
        _add_channels(left, right, low, high, grid, counts, kinds, members, same, line, out)

    map_threads(some, slices_of(x.shape[1], math.ceil(x.shape[1] / PIECES)))
    return torch.from_numpy(out)


def grid_of(
    sizes: tuple[int, ...], shape: Shape, padding: Sequence[int], windows: Sequence[int]
) -> tuple[_Array, int]:
    """Return ``grid`` of `fill`, and the columns of all samples side by side.

    Args:
        sizes: ``[N, channels, A, B]``.
        shape: of the convolution.
        padding: before, by axis.
        windows: how many there are, by axis.
    """
    # Phases are as large as windows reach; what is padding there is in no plane.
    reach = [n + most for n, most in zip(windows, shape.furthest(), strict=True)]
    every = zip(sizes[2:], padding, shape.stride, reach, strict=True)
    rows, width = (max(-(-(n + p) // s), far) for n, p, s, far in every)
    line = width * max(1, min(sizes[0], _LINE // width))
    return np.array([*shape.stride, *padding, rows, width]), line


def _tables(shape: Shape, same: bool) -> tuple[_Array, _Array]:
    """Return ``kinds`` and ``members`` of `_add_channels`."""
    places = np.array([place for _, place in shape.elements()])
    kinds, members = [], []
    for number, (kind, pairs) in enumerate(kinds_of(shape, symmetric=same).items()):
        firsts = places[[i for i, _ in pairs]]
        foremost, last = firsts.min(axis=0), firsts.max(axis=0)
        phases = [phase[0] * shape.stride[1] + phase[1] for phase in (kind.left, kind.right)]
        kinds.append([*phases, *foremost, *(foremost + kind.apart), *(last - foremost)])
        members += [[number, *(places[i] - foremost), i, j] for i, j in pairs]
    return np.array(kinds), np.array(members)
