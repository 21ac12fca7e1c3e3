"""Compiled kernels about entries: what a change of them does, and the best change.

Shapes and rules as in `_second_order_kernels`.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from palette_core.clustering._second_order_kernels import BATCH, TILE, add_rows, factorize

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")
_fused = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})

_ROUNDS = 20


@_fused
def normal_equations(
    grad: Any,
    group: Any,
    share: Any,
    h: Any,
    table: Any,
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
    codes k and l, and b_k the sum of ``grad`` over elements with code k, all times ``share``.

    Arrays and bounds:
        wanted: ``[B]`` whether a table is to be counted; in every row at most one is.
        slot: ``[B]`` int32, where a table's sums are.
        square: ``[slots, D, K, K]`` float64, A; added to.
        right: ``[slots, D, K]`` float64, b; added to.
    """
    dim = right.shape[1]
    columns = grad.shape[1]
    picked = np.empty(columns, np.int32)
    for s in range(low, high):
        some = 0
        where = 0
        for j in range(columns):
            if wanted[table[s, j]]:
                picked[some] = j
                where = slot[table[s, j]]
                some += 1
        if some == 0:
            continue
        code = codes[s]
        for d in range(dim):
            r = s * dim + d
            m = h[group[r]]
            part = np.float64(share[r])
            if part == 0.0:
                continue
            for i in range(some):
                j = picked[i]
                right[where, d, code[j]] += part * grad[r, j]
            _add_pairs(m, code, picked[:some], part, square[where, d])


@_fused
def _add_pairs(m: Any, code: Any, picked: Any, part: Any, out: Any) -> None:
    """Add ``part`` · H_ij to ``out`` at the codes of i and j, for all pairs of picked columns."""
    columns, count = m.shape[0], out.shape[0]
    chosen = np.zeros(columns, np.bool_)
    for j in picked:
        chosen[j] = True
    sums = np.empty((count, TILE), np.float32)
    # Sums over rows of H with one code, a tile of columns at a time.
    for at in range(0, columns, TILE):
        end = min(columns, at + TILE)
        sums[:, : end - at] = 0.0
        for i in picked:
            line = m[i, at:end]
            into = sums[code[i]]
            for k in range(line.shape[0]):
                into[k] += line[k]
        for j in range(at, end):
            if chosen[j]:
                for k in range(count):
                    out[k, code[j]] += part * sums[k, j - at]


@_jit
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


@_fused
def move_entries(
    table: Any,
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
                f = -step[t, codes[s, j], d] if moved[t] else np.float32(0.0)
                change[(s - low) * dim + d, j] = f
                error[s * dim + d, j] += f
    for top in range(0, columns, BATCH):
        bottom = min(columns, top + BATCH)
        for left in range(0, columns, TILE):
            right = min(columns, left + TILE)
            for r in range(low * dim, high * dim):
                f = change[r - low * dim, top:]
                add_rows(f, h[group[r]], grad[r], top, bottom, left, right)


@_jit
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
