"""A compiled kernel that sums x xᵀ over the windows of depthwise convolutions.

Windows overlap: what elements i and j of a window contribute depends on their distance alone, but
for the windows at the edges. So one product of the plane with itself is made for each distance,
13 in place of 45 for 3×3 elements, 41 in place of 325 for 5×5. Of each product the columns are
summed on their own, and the rows at the edges kept apart from those that all windows share; sums
for each pair of elements are put together of these at the end. Nothing is taken away again, so
nothing is lost where the edges hold nearly all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.kernels import kernel_with
from palette_core._common.threads import map_threads, slices_of
from palette_core.builtins.operations._depthwise_planes import Grid, Lying, fill, pieces_of
from palette_core.builtins.operations._window_correlations import kinds_of
from palette_core.builtins.operations._window_shapes import Shape

TALL = 128  # products in one float32 sum

_Array = NDArray[Any]

_fused_kernel = kernel_with(fastmath={"reassoc", "contract", "nsz"})


@_fused_kernel
def _add_rows(
    left: Any,
    right: Any,
    p: Any,
    q: Any,
    line: Any,
    rows: Any,
    columns: Any,
    sums: Any,
    k: Any,
    slot: Any,
) -> None:
    """Add products of ``rows`` rows by column, from ``p`` in ``left`` and ``q`` in ``right`` on."""
    # Unsigned, as numba looks at every other index for whether it counts from the end.
    width, line, p, q = np.uint64(columns), np.uint64(line), np.uint64(p), np.uint64(q)
    k, slot = np.uint64(k), np.uint64(slot)
    second, third = line + line, line + line + line
    for _ in range(rows // 4):
        for t in range(width):
            a, b = p + t, q + t
            near = left[a] * right[b] + left[a + line] * right[b + line]
            far = left[a + second] * right[b + second] + left[a + third] * right[b + third]
            sums[k, slot, t] += near + far
        p, q = p + line + third, q + line + third
    for _ in range(rows % 4):
        for t in range(width):
            sums[k, slot, t] += left[p + t] * right[q + t]
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
    k: Any,
) -> None:
    """Add products of rows: those that all windows share in one slot, each other in its own.

    There are ``windows`` along the rows, and those of kind ``k`` go ``further`` by so much. For
    the rest see `_add_rows`; ``sums`` is ``[kinds, slots, columns at least]`` float32.
    """
    edge, shared, slot = min(further, windows), max(0, windows - further), 0
    for r in range(windows + further):
        if r > edge and r < edge + shared:
            continue
        rows = shared if r == edge and shared > 0 else 1
        _add_rows(left, right, p + r * line, q + r * line, line, rows, columns, sums, k, slot)
        slot += 1


@_fused_kernel
def settle(sums: Any, count: Any, width: Any, kinds: Any, windows: Any, cells: Any) -> None:
    """Add sums by column to ``cells``: those that all windows share in one, the edges apart.

    Args:
        sums: ``[kinds, slots, columns]`` float32, of ``count`` samples; set to 0.
        count: of samples, each ``width`` columns.
        width: see above.
        kinds: see `tables`.
        windows: how many there are, along the columns.
        cells: ``[kinds, slots, slots]`` float64.
    """
    for k in range(kinds.shape[0]):
        further = kinds[k, 7]
        for slot in range(2 * kinds[k, 6] + 1):
            for n in range(count):
                at = n * width
                if windows <= further:
                    for t in range(windows + further):
                        cells[k, slot, t] += sums[k, slot, at + t]
                    continue
                shared = np.float64(0.0)
                for t in range(np.uint64(at + further), np.uint64(at + windows)):
                    shared += np.float64(sums[k, slot, t])
                cells[k, slot, further] += shared
                for t in range(further):
                    cells[k, slot, t] += sums[k, slot, at + t]
                    cells[k, slot, further + 1 + t] += sums[k, slot, at + windows + t]
            for t in range(np.uint64(sums.shape[2])):
                sums[k, slot, t] = 0.0


@_fused_kernel
def add_plane(
    left: Any, right: Any, count: Any, grid: Any, windows: Any, kinds: Any, sums: Any
) -> None:
    """Add products of one plane by column, for each kind.

    Arrays and bounds:
        left, right: ``[phases, rows * line]``, see `fill`.
        count: of samples.
        grid: see `Grid.numbers`.
        windows, kinds: see `_add_channels`.
        sums: ``[kinds, slots, line]`` float32.
    """
    width, line, size = grid[5], grid[6], left.shape[1]
    one, other = left.reshape(-1), right.reshape(-1)
    for k in range(kinds.shape[0]):
        p = kinds[k, 0] * size + kinds[k, 2] * line + kinds[k, 3]
        q = kinds[k, 1] * size + kinds[k, 4] * line + kinds[k, 5]
        columns = (count - 1) * width + windows[1] + kinds[k, 7]
        _add_kind(one, other, p, q, line, windows[0], kinds[k, 6], columns, sums, k)


@_fused_kernel
def gather(cells: Any, windows: Any, kinds: Any, members: Any, same: Any, out: Any) -> None:
    """Write the sums of each pair of elements, put together of those of its kind.

    Arrays and bounds:
        cells: ``[kinds, slots, slots]`` float64, see `settle`.
        windows, kinds, members, same: see `_add_channels`.
        out: ``[E, E]``.
    """
    for m in range(members.shape[0]):
        k, above, aside, i, j = members[m]
        found = 0.0
        for slot in range(above, above + min(windows[0], kinds[k, 6] + 1)):
            for t in range(aside, aside + min(windows[1], kinds[k, 7] + 1)):
                found += cells[k, slot, t]
        out[i, j] = found
        if same:
            out[j, i] = found


@_fused_kernel
def _add_channels(
    x: Any,
    lying: Any,
    y: Any,
    beside: Any,
    low: Any,
    high: Any,
    grid: Any,
    windows: Any,
    kinds: Any,
    members: Any,
    same: Any,
    left: Any,
    right: Any,
    out: Any,
) -> None:
    """Write Σ over windows of (elements of x) (elements of y)ᵀ to ``out`` ``[channels, E, E]``.

    Arrays and bounds:
        x, lying: values and steps of x, see `Lying`.
        y, beside: those of y.
        low, high: channels.
        grid: see `Grid.numbers`.
        windows: ``[2]``, their number by axis.
        kinds: ``[kinds, 8]``: phases; place of the foremost first element, by axis; that of the
            second; how far others go.
        members: ``[pairs, 5]``: kind, how far from the foremost, by axis, and both elements.
        same: x and y are one and the same: symmetric pairs are written twice.
        left, right: planes in which sums take place, see `Grid.planes`; one and the same if
            ``same``. As many at once as have one sum in float32.
    """
    width, line = grid[5], grid[6]
    most_down, most_across = kinds[:, 6].max(), kinds[:, 7].max()
    sums = np.zeros((kinds.shape[0], 2 * most_down + 1, line), np.float32)
    cells = np.empty((left.shape[1], kinds.shape[0], 2 * most_down + 1, 2 * most_across + 1))
    held = line // width
    counts = np.zeros(left.shape[0], np.int64)
    for begin in range(low, high, left.shape[1]):
        channels = min(left.shape[1], high - begin)
        cells[:] = 0.0
        for first in range(0, lying[0], held * left.shape[0]):
            taken = 0
            for at in range(first, min(lying[0], first + held * left.shape[0]), held):
                counts[taken] = fill(x, lying, at, begin, channels, grid, left[taken])
                if not same:
                    fill(y, beside, at, begin, channels, grid, right[taken])
                taken += 1
            for c in range(channels):
                for n in range(taken):
                    add_plane(left[n, c], right[n, c], counts[n], grid, windows, kinds, sums)
                settle(sums, held, width, kinds, windows[1], cells[c])
        for c in range(channels):
            gather(cells[c], windows, kinds, members, same, out[begin + c])


def depthwise_products(
    x: Tensor, y: Tensor | None, shape: Shape, padding: Sequence[int], windows: Sequence[int]
) -> Tensor:
    """Return Σ x_w y_wᵀ over all windows w, for each channel: ``[channels, E, E]`` float64.

    E = elements of the kernel. Float32 sums of 128 products at most, or of one column, are added
    up in float64; on threads whose number does not matter.

    Args:
        x: ``[N, channels, A, B]`` float32 on the CPU, not padded, however it lies.
        y: of the same shape; None is ``x``.
        shape: of the convolution, of two axes.
        padding: before, by axis.
        windows: how many there are, by axis.
    """
    same = y is None
    left, right = Lying.of(x), Lying.of(x if y is None else y)
    kinds, members = tables(shape, same)
    grid, counts = Grid.of(x, shape, padding, windows), np.array(windows)
    at_once = grid.at_once(x, windows, TALL)
    wide = grid.channels(x, at_once)
    n_elements = math.prod(shape.kernel)
    out = np.empty((x.shape[1], n_elements, n_elements))

    def some(channels: slice) -> None:
        planes = grid.planes("planes", at_once, wide)
        others = planes if same else grid.planes("other planes", at_once, wide)
        bounds = (channels.start, channels.stop, grid.numbers, counts)
        _add_channels(*left, *right, *bounds, kinds, members, same, planes, others, out)

    map_threads(some, slices_of(x.shape[1], pieces_of(x.shape[1])))
    return torch.from_numpy(out)


@functools.lru_cache(64)
def tables(shape: Shape, same: bool) -> tuple[_Array, _Array]:
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
