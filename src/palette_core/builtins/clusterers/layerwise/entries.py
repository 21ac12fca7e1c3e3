"""Compiled kernels about entries: what a change of them does, and the best change.

Shapes and rules as in `kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel, kernel_with
from palette_core.builtins.clusterers.layerwise.kernels import BATCH, TILE, add_rows, factorize

_fused_kernel = kernel_with(fastmath={"contract"})

_ROUNDS = 20
_SUMS = 1 << 16  # sums held at once, so that they stay in the cache
_LEAST = 64  # columns of them
_RUN = 128  # rows of H taken at a time


@_fused_kernel
def normal_equations(
    grad: Any,
    group: Any,
    share: Any,
    h: Any,
    table: Any,
    factor: Any,
    wide: int,
    codes: Any,
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
    picked, some, where = _pick(table[low:high], wanted, slot)
    for s in range(strips):
        for d in range(dim):
            r = (low + s) * dim + d
            part = np.float64(share[r])
            for j in picked[s, : some[s]]:
                share_of_it = grad[r, j] * factor[r, j // wide]
                right[where[s], d, codes[low + s, j]] += part * share_of_it
        _sort_runs(codes[low + s], picked[s, : some[s]], right.shape[2])
    # Sums over rows of H with one code. A part of H at a time serves all the strips.
    width = max(_LEAST, min(TILE, _SUMS // (strips * dim * right.shape[2])))
    sums = np.empty((strips * dim, right.shape[2], width), np.float32)
    for left in range(0, columns, width):
        end = min(columns, left + width)
        sums[:, :, : end - left] = 0.0
        for top in range(0, columns, _RUN):
            for s in range(strips):
                own = picked[s, top : min(some[s], top + _RUN)]
                for d in range(dim):
                    r = (low + s) * dim + d
                    if share[r] != 0.0:
                        into = sums[s * dim + d]
                        _add_lines(
                            h[group[r]], codes[low + s], factor[r], wide, own, left, end, into
                        )
        for s in range(strips):
            for d in range(dim):
                r = (low + s) * dim + d
                _add_sums(
                    sums[s * dim + d],
                    codes[low + s],
                    factor[r],
                    wide,
                    picked[s, : some[s]],
                    left,
                    end,
                    np.float64(share[r]),
                    square[where[s], d],
                )


@kernel
def _pick(table: Any, wanted: Any, slot: Any) -> Any:
    """Return columns that look into a wanted table, how many they are, and where its sums are."""
    strips, columns = table.shape
    picked = np.empty((strips, columns), np.int32)
    some = np.zeros(strips, np.int32)
    where = np.zeros(strips, np.int32)
    for s in range(strips):
        for j in range(columns):
            if wanted[table[s, j]]:
                picked[s, some[s]] = j
                some[s] += 1
                where[s] = slot[table[s, j]]
    return picked, some, where


@kernel
def _sort_runs(code: Any, picked: Any, entries: Any) -> None:
    """Put columns in the order of their codes, and of themselves, within runs of ``_RUN``."""
    place = np.empty(entries + 1, np.int32)
    for top in range(0, picked.shape[0], _RUN):
        own = picked[top : top + _RUN].copy()
        place[:] = 0
        for j in own:
            place[code[j] + 1] += 1
        for k in range(entries):
            place[k + 1] += place[k]
        for j in own:
            picked[top + place[code[j]]] = j
            place[code[j]] += 1


@_fused_kernel
def _add_lines(
    m: Any, code: Any, factor: Any, wide: int, picked: Any, left: Any, right: Any, sums: Any
) -> None:
    """Add lines of ``m`` times their factors to the sums of their codes, up to four at a time.

    They are sorted by code.
    """
    count = right - left
    at = 0
    while at < picked.shape[0]:
        own = code[picked[at]]
        into = sums[own, :count]
        end = at + 1
        while end < picked.shape[0] and code[picked[end]] == own:
            end += 1
        while at + 4 <= end:
            a, b = m[picked[at], left:right], m[picked[at + 1], left:right]
            c, d = m[picked[at + 2], left:right], m[picked[at + 3], left:right]
            fa, fb = factor[picked[at] // wide], factor[picked[at + 1] // wide]
            fc, fd = factor[picked[at + 2] // wide], factor[picked[at + 3] // wide]
            for k in range(count):
                into[k] = (((into[k] + fa * a[k]) + fb * b[k]) + fc * c[k]) + fd * d[k]
            at += 4
        while at < end:
            a = m[picked[at], left:right]
            fa = factor[picked[at] // wide]
            for k in range(count):
                into[k] += fa * a[k]
            at += 1


@_fused_kernel
def _add_sums(
    sums: Any,
    code: Any,
    factor: Any,
    wide: int,
    picked: Any,
    left: Any,
    right: Any,
    part: Any,
    out: Any,
) -> None:
    """Add columns ``left`` to ``right`` of sums, by code, to ``out`` ``[K, K]`` by their own."""
    for j in picked:
        if left <= j < right:
            own = part * factor[j // wide]
            for k in range(out.shape[0]):
                out[k, code[j]] += own * sums[k, j - left]


@kernel
def solve(square: Any, right: Any, fixed: Any) -> Any:
    """Return δ with (A + tiny ridge) δ = b; entries that nothing uses stay where they are.

    Arrays and bounds:
        square: ``[K, K]`` float64; right: ``[K]`` float64.
        fixed: an entry that stays where it is too, or -1.
    """
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
    for s in range(low, high):
        for j in range(columns):
            t = table[s, j]
            for d in range(dim):
                moves = np.float32(0.0)
                if moved[t]:
                    moves = -step[t, codes[s, j], d] * factor[s * dim + d, j // wide]
                change[(s - low) * dim + d, j] = moves
                error[s * dim + d, j] += moves
    for top in range(0, columns, BATCH):
        bottom = min(columns, top + BATCH)
        for left in range(0, columns, TILE):
            right = min(columns, left + TILE)
            for r in range(low * dim, high * dim):
                f = change[r - low * dim, top:]
                add_rows(f, h[group[r]], grad[r], top, bottom, left, right)


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
