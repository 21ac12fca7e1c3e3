"""Compiled kernels about entries: what a change of them does, and the best change.

Shapes and rules as in `kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel, kernel_with
from palette_core.builtins.clusterers.layerwise.products import (
    BATCH,
    TILED,
    ZERO,
    add_products,
    blocks,
    factorize,
)
from palette_core.builtins.clusterers.layerwise.vectors import LINE, add_lines

_fused_kernel = kernel_with(fastmath={"contract"})
_inner_kernel = kernel_with(fastmath={"contract"}, no_cpython_wrapper=True)

_ROUNDS = 20


@_fused_kernel
def normal_equations(
    grad: Any,
    codes: Any,
    group: Any,
    share: Any,
    h: Any,
    table: Any,
    factor: Any,
    wide: int,
    wanted: Any,
    slot: Any,
    square: Any,
    right: Any,
    low: Any,
    high: Any,
) -> None:
    """Add up what strips ``low`` to ``high`` say about the best entries of some tables.

    For a change δ of the entries the objective changes by δᵀ A δ − 2 bᵀ δ, separately for each
    of the D coordinates, with A_kl the sum of H_ij over pairs of elements of one row that have
    codes k and l, and b_k the sum of ``grad`` over elements with code k, all times ``share``, and
    every element times its factor.

    Arrays and bounds:
        wanted: ``[B]`` whether a table is to be counted; in every row at most one is.
        slot: ``[B]`` int32, where a table's sums are.
        square: ``[slots, D, K, K]`` float64, A; added to.
        right: ``[slots, D, K]`` float64, b; added to.
    """
    dim, columns, strips = right.shape[1], grad.shape[1], high - low
    picked, ends, begin, where = _pick(
        table[low:high], codes[low:high], wanted, slot, right.shape[2]
    )
    code = np.empty(picked.shape, np.int32)
    scale = np.empty((strips * dim, columns), np.float32)
    spot = blocks(columns, wide)
    for s in range(strips):
        for at in range(begin[s, -1]):
            j = picked[s, at]
            code[s, at] = codes[low + s, j]
            for d in range(dim):
                r = (low + s) * dim + d
                f = factor[r, spot[j]]
                scale[s * dim + d, at] = f
                right[where[s], d, code[s, at]] += np.float64(share[r]) * (grad[r, j] * f)
    # Sums over rows of H with one code. H is symmetric: what is left of its diagonal is not
    # looked at, what is right of it counts twice. Some columns of some rows serve all the strips.
    sums = np.empty((strips * dim, right.shape[2], LINE), np.float32)
    for left in range(0, columns, LINE):
        own, base = left // LINE, max(0, min(left, columns - LINE))
        sums[:] = 0.0
        for part in range(own + 1):
            if part == own:
                _double(sums)
            for n in range(strips * dim):
                s, r = n // dim, low * dim + n
                if begin[s, own] < begin[s, own + 1] and share[r] != 0.0:
                    these = (picked[s], ends[s], code[s], scale[n], begin[s, part : part + 2])
                    _add_runs(h, group[r], base, *these, sums[n])
        for s in range(strips):
            first, last = begin[s, own], begin[s, own + 1]
            for d in range(dim):
                n, times = s * dim + d, np.float64(share[(low + s) * dim + d])
                into = square[where[s], d]
                _add_columns(sums[n], base, times, picked[s], code[s], scale[n], first, last, into)


@inner_kernel
def _pick(table: Any, codes: Any, wanted: Any, slot: Any, entries: Any) -> Any:
    """Return which columns look into a wanted table, and where its sums are.

    Returns:
        columns ``[S, C]``, sorted by code within each `LINE` columns; for the first one of each
        code where those of the code end; where each `LINE` columns begin, and their end,
        ``[S, C / LINE + 1]``; the slot of each strip's table.
    """
    strips, columns = table.shape
    parts = (columns + LINE - 1) // LINE
    picked = np.empty((strips, columns), np.int32)
    ends = np.empty((strips, columns), np.int32)
    begin = np.zeros((strips, parts + 1), np.int32)
    where = np.zeros(strips, np.int32)
    place = np.empty(entries + 1, np.int32)
    for s in range(strips):
        for part in range(parts):
            left, right = part * LINE, min(columns, part * LINE + LINE)
            place[:] = 0
            for j in range(left, right):
                if wanted[table[s, j]]:
                    place[codes[s, j] + 1] += 1
                    where[s] = slot[table[s, j]]
            place[0] = begin[s, part]
            for k in range(entries):
                place[k + 1] += place[k]
                if place[k] < place[k + 1]:
                    ends[s, place[k]] = place[k + 1]
            begin[s, part + 1] = place[entries]
            for j in range(left, right):
                if wanted[table[s, j]]:
                    picked[s, place[codes[s, j]]] = j
                    place[codes[s, j]] += 1
    return picked, ends, begin, where


@inner_kernel
def _double(sums: Any) -> None:
    for n in range(sums.shape[0]):
        for k in range(sums.shape[1]):
            for j in range(sums.shape[2]):
                sums[n, k, j] *= np.float32(2.0)


@_inner_kernel
def _add_runs(
    h: Any,
    group: Any,
    base: Any,
    picked: Any,
    ends: Any,
    code: Any,
    scale: Any,
    bounds: Any,
    sums: Any,
) -> None:
    """Add rows of H, from column ``base`` on, times their scales to the sums of their codes."""
    columns = h.shape[2]
    at, last = np.int64(bounds[0]), np.int64(bounds[1])
    if TILED and columns >= LINE:
        begin = group * columns * columns + base
        while at < last:
            end = np.int64(ends[at])
            add_lines(h, begin, columns, picked, scale, at, end - at, sums, code[at] * LINE)
            at = end
        return
    for i in range(at, last):
        line, into, f = h[group, picked[i]], sums[code[i]], scale[i]
        for k in range(min(LINE, columns - base)):
            into[k] += f * line[base + k]


@_inner_kernel
def _add_columns(
    sums: Any,
    left: Any,
    part: Any,
    picked: Any,
    code: Any,
    scale: Any,
    first: Any,
    last: Any,
    out: Any,
) -> None:
    """Add columns of sums, from ``left`` on, times their scales to ``out`` by their codes."""
    for at in range(first, last):
        own, into = part * scale[at], out[code[at]]
        for k in range(into.shape[0]):
            into[k] += own * sums[k, picked[at] - left]


@kernel
def solve(square: Any, right: Any, fixed: Any, step: Any, low: Any, high: Any) -> None:
    """Set δ of some tables, with (A + tiny ridge) δ = b; entries that nothing uses stay in place.

    Arrays and bounds:
        square: ``[n, D, K, K]`` float64; right: ``[n, D, K]`` float64; fixed: ``[n]`` int64,
            entries that stay in place too, or -1; step: ``[n, K, D]`` float64.
        low: the first one of these tables; high: the one after the last.
    """
    for i in range(low, high):
        for d in range(right.shape[1]):
            found = _solution(square[i, d], right[i, d], fixed[i])
            for k in range(found.shape[0]):
                step[i, k, d] = found[k]


@inner_kernel
def _solution(square: Any, right: Any, fixed: Any) -> Any:
    """Return δ of one table; square: ``[K, K]``; right: ``[K]``; fixed: an entry, or -1."""
    count = right.shape[0]
    used = np.empty(count, np.int64)
    n = 0
    most = 0.0
    for k in range(count):
        if k != fixed and square[k, k] > 0.0:
            used[n] = k
            n += 1
            most = max(most, square[k, k])
    out = np.zeros(count)
    if n == 0:
        return out
    a = np.empty((n, n))
    x = np.empty(n)
    ridge = 1e-9
    while True:
        for i in range(n):
            for j in range(n):
                a[i, j] = 0.5 * (square[used[i], used[j]] + square[used[j], used[i]])
            a[i, i] += ridge * (a[i, i] + 1e-6 * most)
        if factorize(a):
            break
        ridge *= 100.0
    for i in range(n):
        s = right[used[i]]
        for j in range(i):
            s -= a[i, j] * x[j]
        x[i] = s / a[i, i]
    for i in range(n - 1, -1, -1):
        s = x[i]
        for j in range(i + 1, n):
            s -= a[j, i] * x[j]
        x[i] = s / a[i, i]
        out[used[i]] = x[i]
    return out


@_fused_kernel
def move_entries(
    table: Any,
    factor: Any,
    wide: int,
    codes: Any,
    step: Any,
    moved: Any,
    group: Any,
    h: Any,
    error: Any,
    grad: Any,
    low: Any,
    high: Any,
) -> None:
    """Bring error and gradient up to date when entries move by ``step`` ``[B, K, D]`` float32.

    Arrays and bounds:
        moved: ``[B]`` which tables have moved at all.
    """
    dim = step.shape[2]
    columns = error.shape[1]
    change = np.empty(((high - low) * dim, columns), np.float32)
    spot = blocks(columns, wide)
    for s in range(low, high):
        for j in range(columns):
            t = table[s, j]
            for d in range(dim):
                moves = np.float32(0.0)
                if moved[t]:
                    moves = -step[t, codes[s, j], d] * factor[s * dim + d, spot[j]]
                change[(s - low) * dim + d, j] = moves
                error[s * dim + d, j] += moves
    own, into = group[low * dim : high * dim], grad[low * dim : high * dim]
    for top in range(0, columns, BATCH):
        add_products(change[:, top : top + BATCH], h, own, into, top, ZERO, columns)


@kernel
def round_entries(square: Any, right: Any, entries: Any, levels: Any, fixed: Any, out: Any) -> None:
    """Put entries on a ladder of levels, each in turn where the others leave it best.

    Arrays and bounds:
        square: ``[K, K]``, right: ``[K]`` float64: what a change of the entries does.
        entries: ``[K]`` float64, before the change.
        levels: ``[L]`` float64, ascending.
        fixed: an entry that is left as it is, or -1.
        out: ``[K]`` float64, where to begin; overwritten by levels.
    """
    count = right.shape[0]
    for turn in range(_ROUNDS):
        changed = False
        for k in range(count):
            if k == fixed:
                continue
            goal = out[k]
            if square[k, k] > 0.0:
                slope = right[k]
                for i in range(count):
                    if i != k:
                        slope -= square[k, i] * (out[i] - entries[i])
                goal = entries[k] + slope / square[k, k]
            at = np.searchsorted(levels, goal)
            if at == levels.shape[0] or (at > 0 and goal - levels[at - 1] <= levels[at] - goal):
                at -= 1
            if levels[at] != out[k]:
                out[k] = levels[at]
                changed = True
        if turn and not changed:
            break
