"""A compiled kernel that sums x xᵀ and W d xᵀ over the windows of depthwise convolutions.

d = before − x. Windows overlap: what rows i and j of a window contribute depends on their distance
alone, but for the windows at the edges. So one product is made for each distance of rows, and of
columns for each pair, as these stay in registers: 125 in place of 325 for 5×5 elements. Rows at
the edges are summed apart from those that all windows share; sums for each pair of rows are put
together of these at the end. Nothing is taken away again, so nothing is lost where the edges hold
nearly all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel_with
from palette_core._common.vector_code import LANES
from palette_core.builtins.operations._depthwise_planes import fill
from palette_core.builtins.operations._depthwise_products import add_moments, add_moves

_BESIDE = 32  # pairs that are handed out at once

_fused_kernel = kernel_with(fastmath={"reassoc", "contract", "nsz"})


@_fused_kernel
def _gather(
    cells: Any, first: Any, grid: Any, kinds: Any, members: Any, n_elements: Any, found: Any
) -> None:
    """Sum what cells of its kind hold for each pair of elements.

    Arrays and bounds:
        cells: see `add_moments`.
        first: where those of the block of channels begin.
        grid: see `Grid`.
        kinds, members: see `sum_channels`.
        n_elements: of a window.
        found: float64 ``[E², LANES]``.
    """
    size, blocks = grid.size, grid.blocks
    for m in range(members.shape[0]):
        k, above, i, j = members[m, 0], members[m, 1], members[m, 2], members[m, 3]
        start = kinds[k, 3] + above
        stop = start + min(grid.rows, kinds[k, 2] + 1)  # of fewer windows there is one band
        for one in range(grid.wide):
            for other in range(grid.wide):
                a = i * grid.below + one * grid.beside
                pair = np.uint64(a * n_elements + j * grid.below + other * grid.beside)
                for lane in range(np.uint64(LANES)):
                    found[pair, lane] = 0.0
                for slot in range(start, stop):
                    at = (slot * blocks + one // size) * blocks + other // size
                    at = ((at * size + one % size) * size + other % size) * LANES
                    origin = np.uint64(first + at)
                    for lane in range(np.uint64(LANES)):
                        found[pair, lane] += cells[origin + lane]


@_fused_kernel
def _mirror(members: Any, grid: Any, n_elements: Any, found: Any) -> None:
    """Write what was found of each pair to the pair the other way round; see `_gather`."""
    for m in range(members.shape[0]):
        for one in range(grid.wide):
            for other in range(grid.wide):
                a = members[m, 2] * grid.below + one * grid.beside
                b = members[m, 3] * grid.below + other * grid.beside
                pair, back = np.uint64(a * n_elements + b), np.uint64(b * n_elements + a)
                for lane in range(np.uint64(LANES)):
                    found[back, lane] = found[pair, lane]


@_fused_kernel
def _hand_out(found: Any, skip: Any, channels: Any, low: Any, out: Any) -> None:
    """Write what was found to ``out`` ``[channels, E²]``, but for the first ``skip`` channels."""
    for begin in range(0, found.shape[0], _BESIDE):
        end = min(found.shape[0], begin + _BESIDE)
        for c in range(np.uint64(skip), np.uint64(channels)):
            for pair in range(np.uint64(begin), np.uint64(end)):
                out[np.uint64(low) + c, pair] = found[pair, c]


@_fused_kernel
def _next(
    x: Any, lying: Any, y: Any, beside: Any, coming: Any, samples: Any, windows: Any, grid: Any
) -> Any:
    """Return where the next piece begins in memory, see `Ahead`, and how many lines it has.

    None where channels do not lie together: then there are as many lines as values in a row, and
    the processor finds them.
    """
    first, begin, block = coming
    if lying[4] != 1 or beside[4] != 1 or first >= lying[0]:
        return (0, 0, 0, 0), 0
    top = max(0, begin * grid.stride - grid.top)
    rows = min(lying[1] - top, (windows - 1) * grid.stride + grid.reach + 1)
    p = first * lying[3] + block * LANES + top * lying[5]
    q = first * beside[3] + block * LANES + top * beside[5]
    steps = (4 * min(lying[5], lying[6]), 4 * min(beside[5], beside[6]))
    ahead = (x.ctypes.data + 4 * p, y.ctypes.data + 4 * q, steps[0], steps[1])
    return ahead, samples * rows * lying[2]


@_fused_kernel
def sum_channels(
    x: Any,
    lying: Any,
    y: Any,
    beside: Any,
    weight: Any,
    n_rows: Any,
    n_elements: Any,
    low: Any,
    high: Any,
    grid: Any,
    kinds: Any,
    members: Any,
    places: Any,
    same: Any,
    left: Any,
    right: Any,
    outputs: Any,
    cells: Any,
    found: Any,
    out: Any,
    moved: Any,
) -> None:
    """Write Σ over windows of (elements of x) (elements of y)ᵀ to ``out`` ``[channels, E²]``.

    With a weight, y is what x was, and written are Σ x xᵀ and, to ``moved``, Σ W (y − x) xᵀ.

    Arrays and bounds:
        x, lying: values and steps of x, see `Lying`.
        y, beside: those of y.
        weight, n_rows, n_elements: see `add_moves`; R = 0 is none.
        low, high: blocks of channels; the last one ends where the channels do.
        grid: see `Grid`.
        kinds: ``[kinds, 4]``: rows of the foremost first element, and of the second; how far
            others go; the first slot.
        members: ``[pairs of rows, 4]``: kind, how far from the foremost, and both rows.
        places, outputs, moved: see `add_moves`.
        same: x and y are one and the same, or there is a weight: pairs count both ways.
        left, right: pieces, see `fill`; one and the same if x and y are.
        cells, found: zeros for each of these blocks, and to work in; see `add_moments`, `_gather`.
    """
    channels, n_cells = min(LANES, out.shape[0]), cells.shape[0] // (high - low)
    columns = (grid.columns - 1) * grid.across + grid.spread + 1
    line = columns * LANES
    for first in range(0, lying[0], grid.samples):
        samples = min(grid.samples, lying[0] - first)
        for band in range(grid.bands):
            begin, end = grid.rows * band // grid.bands, grid.rows * (band + 1) // grid.bands
            sizes = ((end - begin - 1) * grid.stride + grid.reach + 1, columns)
            corner = (begin * grid.stride - grid.top, -grid.aside)
            sample, windows = sizes[0] * line, end - begin
            for b in range(low, high):
                c = min(b * LANES, out.shape[0] - channels)
                fill(x, lying, first, samples, c, channels, corner, sizes, left)
                if n_rows:
                    fill(y, beside, first, samples, c, channels, corner, sizes, right)
                    for t in range(np.uint64(samples * sample)):
                        right[t] -= left[t]
                    add_moves(
                        left,
                        right,
                        samples,
                        windows,
                        line,
                        sample,
                        grid,
                        places,
                        n_elements,
                        n_rows,
                        weight,
                        outputs,
                        moved,
                        b,
                    )
                elif not same:
                    fill(y, beside, first, samples, c, channels, corner, sizes, right)
                other = left if same else right
                coming = (first, begin, b + 1)
                if b + 1 == high:
                    coming = (first, end, low)
                    if end == grid.rows:
                        coming = (first + grid.samples, 0, low)
                ahead, lines = _next(x, lying, y, beside, coming, samples, windows, grid)
                add_moments(
                    left,
                    other,
                    samples,
                    windows,
                    line,
                    sample,
                    grid,
                    kinds,
                    ahead,
                    lines,
                    cells,
                    (b - low) * n_cells,
                )
    for b in range(low, high):
        c = min(b * LANES, out.shape[0] - channels)
        _gather(cells, (b - low) * n_cells, grid, kinds, members, n_elements, found)
        if same:
            _mirror(members, grid, n_elements, found)
        _hand_out(found, b * LANES - c, channels, c, out)
