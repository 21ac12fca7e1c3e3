"""One block of float32 points from beginning to end, as one compiled function.

A weight in groups is hundreds of blocks, each over in a millisecond: too short for threads that
hand the interpreter's lock to and fro between one kernel and the next. The steps are those of
`floats.solving`, made of the same kernels; what is out of the ordinary is left to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inlined, kernel
from palette_core.builtins.clusterers.kmeans1d.block import middle_of, open_more, set_limits
from palette_core.builtins.clusterers.kmeans1d.costs import (
    LIGHT,
    SHARP,
    mean_of,
    rounding_error,
    running_sums,
    thin,
)
from palette_core.builtins.clusterers.kmeans1d.passes import (
    assign_cells,
    fill_cells,
    gather_open,
    merge_atoms,
)
from palette_core.builtins.clusterers.kmeans1d.search import COARSE, MERGE, search

_DIGIT = 8  # bits that one pass of a sort looks at


@kernel
def fit_block(
    x: Any,
    w: Any,
    low: Any,
    per_unit: Any,
    width: float,
    cells: Any,
    flags: Any,
    points: Any,
    bits: Any,
    weights: Any,
    atoms: Any,
    sums: Any,
    ints: Any,
    lut: Any,
    codes: Any,
) -> bool:
    """Cluster a block.

    Args:
        x: float32 points.
        w: float32 weights, empty for ones.
        low: of the grid; see `cells_of`.
        per_unit: see `cells_of`.
        width: of a cell, at most.
        cells: zeros; see `fill_cells`.
        flags: ``[cells + 1]`` uint8 zeros.
        points: ``[2, N + 1]`` float32 scratch: points of open cells.
        bits: the same memory as uint32.
        weights: ``[2, N + 1]`` float32 scratch, ``[2, 0]`` for no weights.
        atoms: ``[5, M]`` float64 scratch.
        sums: ``[M + 1, 3]`` float64 scratch.
        ints: ``[7, M + 1]`` int32 scratch.
        lut: ``[K]`` float32 out, K at least 2.
        codes: ``[N]`` uint8 out.

    Returns:
        whether it could be done: not with points that are NaN or infinite, with as few atoms as
        entries or more than M of them, where costs need more care or no λ gives K segments alone.
    """
    is_open = flags[:-1]
    k, top = lut.size, is_open.size - 1
    fill_cells(x, w, low, per_unit, cells)
    if not (abs(cells[0, 1]) < np.inf and abs(cells[top, 1]) < np.inf):
        return False  # NaN and infinities lie in the outermost cells
    is_open[0], is_open[top] = cells[0, 0] > 0.0, cells[top, 0] > 0.0
    about = middle_of(cells)
    charge, rounds, n = 0.0, np.int64(0), 0
    any_open = is_open[0] + is_open[top] > 0
    while rounds >= 0:
        count = 0
        if any_open:
            count = gather_open(x, w, low, per_unit, is_open, points[0], weights[0])
            _sort(count, bits, weights)
        if top + 1 + count > atoms.shape[1]:
            return False
        n = merge_atoms(cells, is_open, points[0], weights[0], about, atoms[0], atoms[1], ints[0])
        aw, ax = atoms[0, :n], atoms[1, :n]
        if n <= k or not _is_even(aw):
            return False
        level, merged = 0, n
        while charge == 0.0 and merged > max(COARSE, 4 * k * MERGE):
            level, merged = level + 1, (merged + MERGE - 1) // MERGE
        while level >= 0:
            size, its_w, its_x = n, aw, ax
            if level > 0:
                run = MERGE**level
                size = (n + run - 1) // run
                its_w, its_x = atoms[3, :size], atoms[4, :size]
                thin(aw, ax, run, its_w, its_x)
            running_sums(its_w, its_x, sums)
            charge, got, _, _ = search(
                sums, size, k, charge, atoms[2], ints[1], ints[2:4], ints[4:7]
            )
            if got != k and level == 0:
                return False
            level -= 1
        cuts = ints[6, : k + 1]
        error, care = rounding_error(sums, aw, ax, cuts)
        if not error <= SHARP * care:
            return False
        rounds = open_more(aw, ints[0, :n], cuts, charge, width, rounds, is_open)
        any_open = True
    for i in range(k):
        first, last = np.int64(ints[6, i]), np.int64(ints[6, i + 1])
        mean = mean_of(atoms[0], atoms[1], first, last)
        lut[i] = np.float32(min(max(mean, atoms[1, first]), atoms[1, last - 1]) + about)
    limits = points[0, :k]
    set_limits(lut, low, per_unit, limits, flags)
    assign_cells(x, low, per_unit, flags, limits, codes)
    return True


@inlined
def _is_even(w: Any) -> bool:
    """Return whether no atom is so light that it is lost in running sums."""
    least, whole = np.inf, 0.0
    for i in range(w.size):
        least = min(least, w[i])
        whole += w[i]
    return least > LIGHT * whole


@inlined
def _sort(n: int, bits: Any, w: Any) -> None:
    """Sort float32 points by value; weights follow, in order among equal points.

    By digits of their bits, the last one first: no data makes it slow.

    Args:
        n: number of points.
        bits: ``[2, at least n]`` uint32: those of the points, and scratch.
        w: ``[2, at least n]`` float32: weights, and scratch; no columns for no weights.
    """
    sign, ones = np.uint32(1 << 31), np.uint32(0xFFFFFFFF)
    digit = np.uint32((1 << _DIGIT) - 1)
    for i in range(n):
        key = bits[0, i] if bits[0, i] != sign else np.uint32(0)  # −0 equals 0
        bits[0, i] = key ^ (ones if key & sign else sign)
    starts = np.empty(1 << _DIGIT, np.int64)
    for turn in range(32 // _DIGIT):  # an even number of them: all ends where it began
        shift, old = np.uint32(turn * _DIGIT), turn % 2
        starts[:] = 0
        for i in range(n):
            starts[(bits[old, i] >> shift) & digit] += 1
        total = 0
        for d in range(starts.size):
            count = starts[d]
            starts[d] = total
            total += count
        for i in range(n):
            d = (bits[old, i] >> shift) & digit
            bits[1 - old, starts[d]] = bits[old, i]
            if w.size > 0:
                w[1 - old, starts[d]] = w[old, i]
            starts[d] += 1
    for i in range(n):
        bits[0, i] ^= sign if bits[0, i] & sign else ones
