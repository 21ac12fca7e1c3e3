"""Kernels that sum products over the windows of one piece of depthwise convolutions' inputs.

Each channel is a lane: see `_depthwise_lanes`.
"""

from __future__ import annotations

from typing import Any

from palette_core._common.kernels import kernel_with
from palette_core._common.vector_code import LANES
from palette_core.builtins.operations._depthwise_lanes import (
    AHEAD,
    CHAINS,
    PLACES,
    add_places,
    add_tile,
    convolve,
)

_TALL = 64  # products in one float32 sum

_fused_kernel = kernel_with(fastmath={"reassoc", "contract", "nsz"})


@_fused_kernel
def _add_some(
    size: Any,
    x: Any,
    p: Any,
    y: Any,
    q: Any,
    apart: Any,
    walk: Any,
    ahead: Any,
    out: Any,
    at: Any,
) -> None:
    """Add products of some elements with as many, see `add_tile`."""
    if size == 1:
        add_tile(1, x, p, y, q, apart, walk, ahead, out, at)
    elif size == 2:
        add_tile(2, x, p, y, q, apart, walk, ahead, out, at)
    elif size == 3:
        add_tile(3, x, p, y, q, apart, walk, ahead, out, at)
    elif size == 4:
        add_tile(4, x, p, y, q, apart, walk, ahead, out, at)
    else:
        add_tile(5, x, p, y, q, apart, walk, ahead, out, at)


@_fused_kernel
def _at_once(counts: Any, most: Any) -> Any:
    """Return how many samples, rows and columns have one sum in float32, ``most`` in all."""
    wide = min(counts[2], most)
    tall = min(counts[1], max(1, most // wide))
    return min(counts[0], max(1, most // (wide * tall))), tall, wide


@_fused_kernel
def _walk_from(n: Any, r: Any, c: Any, counts: Any, some: Any, steps: Any) -> Any:
    """Return a walk over some windows, and how far the first of them is from the first of all."""
    samples = min(some[0], counts[0] - n)
    rows, columns = min(some[1], counts[1] - r), min(some[2], counts[2] - c)
    walk = (samples, rows, columns, steps[0], steps[1], steps[2])
    return walk, n * steps[0] + r * steps[1] + c * steps[2]


@_fused_kernel
def _by_longer(samples: Any, rows: Any, columns: Any, sample: Any, row: Any, column: Any) -> Any:
    """Return counts and steps, those of rows last where there is one column only."""
    if columns == 1:
        return (samples, columns, rows), (sample, column, row)
    return (samples, rows, columns), (sample, row, column)


@_fused_kernel
def _add_rows(
    size: Any,
    x: Any,
    p: Any,
    y: Any,
    q: Any,
    apart: Any,
    counts: Any,
    steps: Any,
    ahead: Any,
    lines: Any,
    out: Any,
    at: Any,
) -> Any:
    """Add products of elements of some rows of windows.

    Arrays and bounds:
        size, x, p, y, q, apart, out, at: see `add_tile`.
        counts, steps: how many samples, rows and columns, and how far each is from the next.
        ahead, lines: what is needed next, see `Ahead`, and how many lines of it there are.

    Returns:
        the last two, less what is fetched already.
    """
    some = _at_once(counts, _TALL * max(1, CHAINS // (size * size)))
    for n in range(0, counts[0], some[0]):
        for r in range(0, counts[1], some[1]):
            for c in range(0, counts[2], some[2]):
                walk, far = _walk_from(n, r, c, counts, some, steps)
                _add_some(size, x, p + far, y, q + far, apart, walk, ahead, out, at)
                done = walk[0] * walk[1] * walk[2]
                first, second, one, other = ahead
                ahead = (first + done * one, second + done * other, one, other)
                lines -= done
                if lines <= 0:
                    ahead = (first, second, 0, 0)
    return ahead, lines


@_fused_kernel
def add_moments(
    x: Any,
    y: Any,
    samples: Any,
    rows: Any,
    line: Any,
    sample: Any,
    grid: Any,
    kinds: Any,
    ahead: Any,
    lines: Any,
    cells: Any,
    first: Any,
) -> None:
    """Add products of elements of a piece's windows to ``cells``.

    Rows of windows have one slot where all windows share them, else a slot each.

    Arrays and bounds:
        x, y: pieces, see `fill`.
        samples: how many.
        rows: how many windows, from one row to the next.
        line, sample: how far rows and samples are apart.
        grid: see `Grid`.
        kinds: see `sum_channels`.
        ahead, lines: see `_add_rows`.
        cells: float64, from ``first`` on ``[slots, blocks, blocks, size, size, LANES]``: in each
            slot of each block of columns with each other one.
        first: see above.
    """
    stride, size, blocks = grid.stride, grid.size, grid.blocks
    for k in range(kinds.shape[0]):
        left, right, further, slot = kinds[k, 0], kinds[k, 1], kinds[k, 2], kinds[k, 3]
        r = 0
        while r < rows + further:
            shared = rows - further if r == further and rows > further else 1
            counts, steps = _by_longer(
                samples, shared, grid.columns, sample, stride * line, grid.across * LANES
            )
            for i in range(blocks):
                for j in range(blocks):
                    p = (left + r * stride) * line + i * size * grid.apart
                    q = (right + r * stride) * line + j * size * grid.apart
                    at = first + ((slot * blocks + i) * blocks + j) * size * size * LANES
                    ahead, lines = _add_rows(
                        size, x, p, y, q, grid.apart, counts, steps, ahead, lines, cells, at
                    )
            r, slot = r + shared, slot + 1


@_fused_kernel
def _add_outputs(
    y: Any, beside: Any, x: Any, places: Any, counts: Any, steps: Any, out: Any, at: Any
) -> None:
    """Add products of outputs with each element of their windows to ``[E, LANES]`` of ``out``.

    Arrays and bounds:
        y, beside, x, places, out, at: see `add_places`.
        counts, steps: see `_add_rows`.
    """
    some = _at_once(counts, _TALL)
    for n in range(0, counts[0], some[0]):
        for r in range(0, counts[1], some[1]):
            for c in range(0, counts[2], some[2]):
                walk, q = _walk_from(n, r, c, counts, some, steps)
                p = n * beside[0] + r * beside[1] + c * beside[2]
                for e in range(0, places.shape[0], PLACES):
                    add_places(y, p, beside, x, q, places, e, walk, out, at + e * LANES)


@_fused_kernel
def add_moves(
    x: Any,
    d: Any,
    samples: Any,
    rows: Any,
    line: Any,
    sample: Any,
    grid: Any,
    places: Any,
    n_elements: Any,
    n_rows: Any,
    weight: Any,
    outputs: Any,
    moved: Any,
    block: Any,
) -> None:
    """Add Σ W d xᵀ over a piece's windows to ``moved``.

    Arrays and bounds:
        d: the piece of what inputs have moved by.
        places: int64, where elements of a window lie; a multiple of `PLACES` of them.
        n_elements: how many there are, E.
        n_rows: of W, R.
        weight: ``[blocks, R, E, LANES]`` float32, flat.
        outputs: float32, to work in.
        moved: ``[blocks, R, E at least, LANES]`` float64, flat.
        block: number of the block of channels.
        the rest: see `add_moments`.
    """
    counts, steps = _by_longer(
        samples, rows, grid.columns, sample, grid.stride * line, grid.across * LANES
    )
    rounds = (counts[2] + AHEAD - 1) // AHEAD
    row = rounds * AHEAD * LANES
    beside = (counts[1] * row, row, LANES)
    for k in range(n_rows):
        number = block * n_rows + k
        first = number * n_elements * LANES
        for n in range(counts[0]):
            for r in range(counts[1]):
                begin, into = n * steps[0] + r * steps[1], n * beside[0] + r * beside[1]
                convolve(
                    d, begin, steps[2], places, weight, first, n_elements, outputs, into, rounds
                )
        at = number * places.shape[0] * LANES
        _add_outputs(outputs, beside, x, places, counts, steps, moved, at)
