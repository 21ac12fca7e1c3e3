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
    codes: ``[M / D, C]`` uint8; pinned: ``[M / D, C]`` bool, codes that stay as they are.
    factor: ``[M, C / wide]`` float32, what entries are multiplied by, for ``wide`` columns each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel, kernel_with

_fused_kernel = kernel_with(fastmath={"contract"})

_PANEL = 48
TILE = 512
BATCH = 32


@_fused_kernel
def add_rows(f: Any, m: Any, out: Any, top: Any, bottom: Any, left: Any, right: Any) -> None:
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


@_fused_kernel
def _panel(a: Any, low: Any, high: Any) -> Any:
    """Factorize columns ``low`` to ``high``, which all earlier columns have updated already."""
    for j in range(low, high):
        for k in range(low, j):
            a[j, j] -= a[j, k] * a[j, k]
        if not a[j, j] > 0.0:
            return False
        a[j, j] = np.sqrt(a[j, j])
        for i in range(j + 1, high):
            s = a[i, j]
            for k in range(low, j):
                s -= a[i, k] * a[j, k]
            a[i, j] = s / a[j, j]
    for i in range(high, a.shape[0]):
        for j in range(low, high):
            s = a[i, j]
            for k in range(low, j):
                s -= a[i, k] * a[j, k]
            a[i, j] = s / a[j, j]
    return True


@_fused_kernel
def factorize(a: Any) -> Any:
    """Replace the lower triangle of ``a`` ``[C, C]`` float64 by its Cholesky factor.

    Returns:
        whether every pivot was positive.
    """
    n = a.shape[0]
    for low in range(0, n, _PANEL):
        high = min(n, low + _PANEL)
        if not _panel(a, low, high):
            return False
        panel = a[high:, low:high].T.copy()
        for i in range(high, n):
            add_rows(-a[i, low:high], panel, a[i, high:], 0, high - low, 0, i + 1 - high)
    return True


@kernel
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


@kernel
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


@_fused_kernel
def feed_back(
    w: Any,
    group: Any,
    share: Any,
    order: Any,
    feedback: Any,
    pivot: Any,
    table: Any,
    lut: Any,
    factor: Any,
    wide: int,
    pinned: Any,
    codes: Any,
    low: Any,
    high: Any,
) -> None:
    """Choose codes column by column, each with the errors of those before it fed into it.

    With H = (I + U) diag(d) (I + U)ᵀ, U strictly upper triangular, in the order of the columns,
    the objective is Σ_i d_i (e_i + Σ_{k<i} e_k U_ki)²: column i aims at w_i + Σ_{k<i} e_k U_ki
    (Frantar et al. 2022, arXiv 2210.17323; in this form Chee et al. 2023, arXiv 2307.13304).
    A pinned element cannot take its aim; its error e_i, which is w_i where its entry is zero, is
    fed into later columns like any other.

    Arrays and bounds:
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
    made = np.empty((rows, BATCH), np.float32)
    # Errors are fed at once to the columns of a batch, and to all later ones when it is done.
    for left in range(0, columns, BATCH):
        right = min(columns, left + BATCH)
        for i in range(left, right):
            for s in range(low, high):
                at = order[group[s * dim], i]
                entries = lut[table[s, at]]
                if not pinned[s, at]:
                    for d in range(dim):
                        f = factor[s * dim + d, at // wide]
                        targets[d] = aim[s * dim - first + d, i] / f if f > 0.0 else 0.0
                        weights[d] = share[s * dim + d] * pivot[group[s * dim + d], i] * (f * f)
                    codes[s, at] = _best(entries, targets, weights)
                code = codes[s, at]
                for d in range(dim):
                    r = s * dim + d
                    e = w[r, at] - entries[code, d] * factor[r, at // wide]
                    made[r - first, i - left] = e
                    for k in range(i + 1, right):
                        aim[r - first, k] += e * feedback[group[r], i, k]
        for r in range(rows):
            add_rows(made[r], feedback[group[first + r]], aim[r], left, right, right, columns)


@_fused_kernel
def multiply(error: Any, group: Any, h: Any, grad: Any, low: Any, high: Any) -> None:
    """Set rows ``low`` to ``high`` of ``grad`` to those of error · H."""
    columns = error.shape[1]
    for r in range(low, high):
        grad[r] = 0.0
    # A tile of H at a time serves all the rows.
    for top in range(0, columns, BATCH):
        bottom = min(columns, top + BATCH)
        for left in range(0, columns, TILE):
            right = min(columns, left + TILE)
            for r in range(low, high):
                add_rows(error[r, top:], h[group[r]], grad[r], top, bottom, left, right)


@_fused_kernel
def descend(
    w: Any,
    error: Any,
    grad: Any,
    group: Any,
    share: Any,
    h: Any,
    table: Any,
    lut: Any,
    factor: Any,
    wide: int,
    pinned: Any,
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
                if pinned[s, j]:
                    continue
                entries = lut[table[s, j]]
                old = codes[s, j]
                for d in range(dim):
                    r = s * dim + d
                    corner = h[group[r], j, j]
                    f = factor[r, j // wide]
                    weights[d] = share[r] * corner * (f * f)
                    step = grad[r, j] / (corner * f) if f > 0.0 else np.float32(0.0)
                    targets[d] = entries[old, d] + step
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
                    step = (entries[old, d] - entries[code, d]) * factor[r, j // wide]
                    error[r, j] += step
                    line = h[group[r], j]
                    out = grad[r]
                    for k in range(columns):
                        out[k] += step * line[k]
        total += changed
        if changed == 0:
            break
    return total


@kernel
def subtract_decoded(
    w: Any,
    table: Any,
    lut: Any,
    factor: Any,
    wide: int,
    codes: Any,
    out: Any,
    low: Any,
    high: Any,
) -> None:
    """Set the rows of strips ``low`` to ``high`` of ``out`` to w − ŵ."""
    dim = lut.shape[2]
    for s in range(low, high):
        for j in range(w.shape[1]):
            for d in range(dim):
                r = s * dim + d
                out[r, j] = w[r, j] - lut[table[s, j], codes[s, j], d] * factor[r, j // wide]


@kernel
def row_costs(error: Any, grad: Any, share: Any, out: Any, low: Any, high: Any) -> None:
    """Set ``out[r]`` (float64) to share · Σ_j error · grad for rows ``low`` to ``high``."""
    for r in range(low, high):
        total = 0.0
        for j in range(error.shape[1]):
            total += np.float64(error[r, j]) * np.float64(grad[r, j])
        out[r] = total * np.float64(share[r])
