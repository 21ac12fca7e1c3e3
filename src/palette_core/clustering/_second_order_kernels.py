"""Compiled kernels that lower tr(ΔW H ΔWᵀ) over the codes and entries of look-up tables.

The weight is a matrix of M rows (output channels) and C columns (input coordinates), and D
neighbouring rows form a strip whose elements in one column share a code. Row r uses matrix
``group[r]`` of H and counts ``share[r]`` times, and the element of strip s in column j looks into
table ``table[s, j]``.

Work is cut into fixed ranges of strips, and all sums inside run in one order, so a result does
not depend on how many threads share it. The kernels release the GIL.

Shapes:
    w, error, grad: ``[M, C]`` float32; ``error = w − ŵ``, ``grad = error · H``.
    h: ``[G, C, C]`` float32, symmetric.
    group: ``[M]`` int32, share: ``[M]`` float32, not negative.
    table: ``[M / D, C]`` int32, lut: ``[B, K, D]`` float32; scalars (D = 1) ascending.
    codes: ``[M / D, C]`` uint8.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")
_fused = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})

_PANEL = 48
_TILE = 512
_BATCH = 32
_ROUNDS = 20


@_fused
def factorize(a: Any) -> Any:
    """Replace the lower triangle of ``a`` ``[C, C]`` float64 by its Cholesky factor.

    Panels of columns, each updated by all earlier ones before it is factorized.

    Returns:
        whether every pivot was positive.
    """
    n = a.shape[0]
    for low in range(0, n, _PANEL):
        high = min(n, low + _PANEL)
        for j in range(low, high):
            for k in range(low, j):
                f = a[j, k]
                a[j, j] -= f * f
            if not a[j, j] > 0.0:
                return False
            a[j, j] = np.sqrt(a[j, j])
            for i in range(j + 1, high):
                s = a[i, j]
                for k in range(low, j):
                    s -= a[i, k] * a[j, k]
                a[i, j] = s / a[j, j]
        width = high - low
        panel = np.empty((width, n - high))
        for i in range(high, n):
            for j in range(low, high):
                s = a[i, j]
                for k in range(low, j):
                    s -= a[i, k] * a[j, k]
                a[i, j] = s / a[j, j]
                panel[j - low, i - high] = a[i, j]
        for i in range(high, n):
            row = a[i, high : i + 1]
            k = 0
            while k + 4 <= width:
                f0, f1 = a[i, low + k], a[i, low + k + 1]
                f2, f3 = a[i, low + k + 2], a[i, low + k + 3]
                p0, p1, p2, p3 = panel[k], panel[k + 1], panel[k + 2], panel[k + 3]
                for j in range(row.shape[0]):
                    row[j] -= f0 * p0[j] + f1 * p1[j] + f2 * p2[j] + f3 * p3[j]
                k += 4
            while k < width:
                f0 = a[i, low + k]
                p0 = panel[k]
                for j in range(row.shape[0]):
                    row[j] -= f0 * p0[j]
                k += 1
    return True


@_jit
def nearest(entries: Any, x: Any) -> Any:
    """Return the entry of ascending ``[K, 1]`` nearest to ``x``, the lower of two equally near."""
    low, high = 0, entries.shape[0] - 1
    while low < high:
        middle = (low + high) >> 1
        # Not the mean of both: entries and x are rounded, their differences hardly.
        if x - entries[middle, 0] > entries[middle + 1, 0] - x:
            low = middle + 1
        else:
            high = middle
    return low


@_jit
def _best(entries: Any, targets: Any, weights: Any) -> Any:
    """Return the entry ``[D]`` with the least Σ_d weights_d (entry_d − target_d)²."""
    if entries.shape[1] == 1:
        return nearest(entries, targets[0])
    least, found = np.inf, 0
    for k in range(entries.shape[0]):
        cost = 0.0
        for d in range(entries.shape[1]):
            gap = entries[k, d] - targets[d]
            cost += weights[d] * gap * gap
        if cost < least:
            least, found = cost, k
    return found


@_fused
def feed_back(
    w: Any,
    group: Any,
    share: Any,
    order: Any,
    feedback: Any,
    pivot: Any,
    table: Any,
    lut: Any,
    codes: Any,
    low: Any,
    high: Any,
) -> None:
    """Choose codes column by column, each with the errors of those before it fed into it.

    With H = (I + U) diag(d) (I + U)ᵀ, U strictly upper triangular, in the order of the columns,
    the objective is Σ_i d_i (e_i + Σ_{k<i} e_k U_ki)²: column i aims at w_i + Σ_{k<i} e_k U_ki
    (Frantar et al. 2022, arXiv 2210.17323; in this form Chee et al. 2023, arXiv 2307.13304).

    Args:
        order: ``[G, C]`` int32, which column comes i-th.
        feedback: ``[G, C, C]`` float32, U; ``pivot``: ``[G, C]`` float32, d.
        low, high: the strips to do.
    """
    dim = lut.shape[2]
    columns = w.shape[1]
    first = low * dim
    rows = (high - low) * dim
    aim = np.empty((rows, columns), np.float32)
    for r in range(rows):
        turn = order[group[first + r]]
        for i in range(columns):
            aim[r, i] = w[first + r, turn[i]]
    targets = np.empty(dim, np.float32)
    weights = np.empty(dim, np.float32)
    made = np.empty((rows, _BATCH), np.float32)
    # Errors are fed at once to the columns of a batch, and to all later ones when it is done.
    for left in range(0, columns, _BATCH):
        right = min(columns, left + _BATCH)
        for i in range(left, right):
            for s in range(low, high):
                at = order[group[s * dim], i]
                for d in range(dim):
                    targets[d] = aim[s * dim - first + d, i]
                    weights[d] = share[s * dim + d] * pivot[group[s * dim + d], i]
                entries = lut[table[s, at]]
                code = _best(entries, targets, weights)
                codes[s, at] = code
                for d in range(dim):
                    r = s * dim + d
                    e = w[r, at] - entries[code, d]
                    made[r - first, i - left] = e
                    for k in range(i + 1, right):
                        aim[r - first, k] += e * feedback[group[r], i, k]
        for r in range(rows):
            _add_rows(made[r], feedback[group[first + r]], aim[r], left, right, right, columns)


@_fused
def _add_rows(f: Any, m: Any, out: Any, top: Any, bottom: Any, left: Any, right: Any) -> None:
    """Add Σ_k f[k − top] · m[k, left:right], k from ``top`` to ``bottom``, to ``out``."""
    into = out[left:right]
    k = top
    while k + 4 <= bottom:
        f0, f1, f2, f3 = f[k - top], f[k + 1 - top], f[k + 2 - top], f[k + 3 - top]
        p0, p1 = m[k, left:right], m[k + 1, left:right]
        p2, p3 = m[k + 2, left:right], m[k + 3, left:right]
        if f0 != 0.0 or f1 != 0.0 or f2 != 0.0 or f3 != 0.0:
            for j in range(into.shape[0]):
                into[j] += f0 * p0[j] + f1 * p1[j] + f2 * p2[j] + f3 * p3[j]
        k += 4
    while k < bottom:
        f0, p0 = f[k - top], m[k, left:right]
        for j in range(into.shape[0]):
            into[j] += f0 * p0[j]
        k += 1


@_fused
def multiply(error: Any, group: Any, h: Any, grad: Any, low: Any, high: Any) -> None:
    """Set rows ``low`` to ``high`` of ``grad`` to those of error · H."""
    columns = error.shape[1]
    for r in range(low, high):
        grad[r] = 0.0
    # A tile of H at a time serves all the rows.
    for top in range(0, columns, _BATCH):
        bottom = min(columns, top + _BATCH)
        for left in range(0, columns, _TILE):
            right = min(columns, left + _TILE)
            for r in range(low, high):
                _add_rows(error[r, top:], h[group[r]], grad[r], top, bottom, left, right)


@_fused
def descend(
    w: Any,
    error: Any,
    grad: Any,
    group: Any,
    share: Any,
    h: Any,
    table: Any,
    lut: Any,
    codes: Any,
    sweeps: Any,
    low: Any,
    high: Any,
) -> Any:
    """Give each element in turn the best code, all others being as they are.

    With the rest fixed, the objective is H_jj (c − t)² plus a constant, where
    t = ŵ_j + grad_j / H_jj. Updates ``error``, ``grad`` and ``codes``.

    Returns:
        how many codes changed in all sweeps.
    """
    dim = lut.shape[2]
    columns = w.shape[1]
    targets = np.empty(dim, np.float32)
    weights = np.empty(dim, np.float32)
    total = 0
    for _ in range(sweeps):
        changed = 0
        for j in range(columns):
            for s in range(low, high):
                entries = lut[table[s, j]]
                old = codes[s, j]
                for d in range(dim):
                    r = s * dim + d
                    corner = h[group[r], j, j]
                    weights[d] = share[r] * corner
                    targets[d] = entries[old, d] + grad[r, j] / corner
                code = _best(entries, targets, weights)
                if code == old:
                    continue
                gain = 0.0
                for d in range(dim):
                    before = entries[old, d] - targets[d]
                    after = entries[code, d] - targets[d]
                    gain += weights[d] * (before * before - after * after)
                if not gain > 0.0:
                    continue
                changed += 1
                codes[s, j] = code
                for d in range(dim):
                    r = s * dim + d
                    step = entries[old, d] - entries[code, d]
                    error[r, j] += step
                    line = h[group[r], j]
                    out = grad[r]
                    for k in range(columns):
                        out[k] += step * line[k]
        total += changed
        if changed == 0:
            break
    return total


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

    Args:
        wanted: ``[B]`` whether a table is to be counted; in every row at most one is.
        slot: ``[B]`` int32, where a table's sums are.
        square: ``[slots, D, K, K]`` float64, A; added to.
        right: ``[slots, D, K]`` float64, b; added to.
    """
    dim, count = right.shape[1], right.shape[2]
    columns = grad.shape[1]
    sums = np.empty((count, _TILE), np.float32)
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
            out = square[where, d]
            # Sums over rows of H with one code, a tile of columns at a time.
            for at in range(0, columns, _TILE):
                end = min(columns, at + _TILE)
                sums[:, : end - at] = 0.0
                for i in range(some):
                    line = m[picked[i], at:end]
                    into = sums[code[picked[i]]]
                    for k in range(line.shape[0]):
                        into[k] += line[k]
                if some == columns:
                    for k in range(count):
                        for j in range(at, end):
                            out[k, code[j]] += part * sums[k, j - at]
                else:
                    for i in range(some):
                        j = picked[i]
                        if at <= j < end:
                            for k in range(count):
                                out[k, code[j]] += part * sums[k, j - at]


@_jit
def solve(square: Any, right: Any) -> Any:
    """Return δ with (A + tiny ridge) δ = b; entries that nothing uses stay where they are.

    Args:
        square: ``[K, K]`` float64; right: ``[K]`` float64.
    """
    count = right.shape[0]
    used = np.empty(count, np.int64)
    n = 0
    most = 0.0
    for k in range(count):
        if square[k, k] > 0.0:
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


@_jit
def subtract_decoded(
    w: Any, table: Any, lut: Any, codes: Any, out: Any, low: Any, high: Any
) -> None:
    """Set the rows of strips ``low`` to ``high`` of ``out`` to w − ŵ."""
    dim = lut.shape[2]
    for s in range(low, high):
        for j in range(w.shape[1]):
            for d in range(dim):
                out[s * dim + d, j] = w[s * dim + d, j] - lut[table[s, j], codes[s, j], d]


@_jit
def row_costs(error: Any, grad: Any, share: Any, out: Any, low: Any, high: Any) -> None:
    """Set ``out[r]`` (float64) to share · Σ_j error · grad for rows ``low`` to ``high``."""
    for r in range(low, high):
        total = 0.0
        for j in range(error.shape[1]):
            total += np.float64(error[r, j]) * np.float64(grad[r, j])
        out[r] = total * np.float64(share[r])


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

    Args:
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
    for top in range(0, columns, _BATCH):
        bottom = min(columns, top + _BATCH)
        for left in range(0, columns, _TILE):
            right = min(columns, left + _TILE)
            for r in range(low * dim, high * dim):
                f = change[r - low * dim, top:]
                _add_rows(f, h[group[r]], grad[r], top, bottom, left, right)


@_jit
def round_entries(square: Any, right: Any, entries: Any, levels: Any, out: Any) -> None:
    """Put entries on a ladder of levels, each in turn where the others leave it best.

    Args:
        square: ``[K, K]``, right: ``[K]`` float64: what a change of the entries does.
        entries: ``[K]`` float64, before the change.
        levels: ``[L]`` float64, ascending.
        out: ``[K]`` float64, where to begin; overwritten by levels.
    """
    count = right.shape[0]
    for turn in range(_ROUNDS):
        changed = False
        for k in range(count):
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
