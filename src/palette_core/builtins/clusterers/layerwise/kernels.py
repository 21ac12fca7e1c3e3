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

from palette_core._common.kernels import inlined, kernel, kernel_with
from palette_core.builtins.clusterers.layerwise.products import BATCH, add_products

_fused_kernel = kernel_with(fastmath={"contract"})

_LOOK = 32  # elements looked at together


@inlined
def _nearest(flat: Any, t: Any, x: Any) -> Any:
    """Return the entry of table ``t`` nearest to ``x``, the lower of two equally near.

    Compared with all, without a branch: sooner done than a search even of 256. Not with the means
    of neighbours: entries and x are rounded, their differences hardly. ``flat`` is ``[B, K]``.
    """
    found = 0
    for k in range(flat.shape[1] - 1):
        found += x - flat[t, k] > flat[t, k + 1] - x
    return found


@kernel
def _best(flat: Any, t: Any, targets: Any, weights: Any) -> Any:
    """Return the entry of table ``t`` with the least Σ_d weights_d (entry_d − target_d)².

    Of scalars the lower of two equally near. ``flat`` is ``[B, K · D]``.
    """
    dim = targets.shape[0]
    if dim == 1:
        return _nearest(flat, t, targets[0])
    least, found = np.inf, 0
    for k in range(flat.shape[1] // dim):
        cost = 0.0
        for d in range(dim):
            gap = flat[t, k * dim + d] - targets[d]
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
    flat = lut.reshape(lut.shape[0], lut.shape[1] * dim)
    columns = w.shape[1]
    first = low * dim
    rows = (high - low) * dim
    aim = np.empty((rows, columns), np.float32)
    for r in range(rows):
        for i in range(columns):
            aim[r, i] = w[first + r, order[group[first + r], i]]
    made = np.empty((BATCH, rows), np.float32)
    fed = np.empty(rows, np.float32)
    own = group[first : first + rows]
    # Errors are fed to later columns of a batch one by one, and to all behind it at once.
    for left in range(0, columns, BATCH):
        right = min(columns, left + BATCH)
        for i in range(left, right):
            _add_fed(feedback, own, made, left, i, fed)
            for r in range(rows):
                fed[r] += aim[r, i]
            if dim == 1:
                _take_scalars(
                    w,
                    group,
                    order,
                    table,
                    flat,
                    factor,
                    wide,
                    pinned,
                    codes,
                    low,
                    high,
                    i,
                    fed,
                    made[i - left],
                )
            else:
                _take_vectors(
                    w,
                    group,
                    share,
                    order,
                    pivot,
                    table,
                    flat,
                    factor,
                    wide,
                    pinned,
                    codes,
                    low,
                    high,
                    i,
                    fed,
                    made[i - left],
                )
        add_products(made[: right - left].T.copy(), feedback, own, aim, left, right, columns)


@_fused_kernel
def _take_scalars(
    w: Any,
    group: Any,
    order: Any,
    table: Any,
    flat: Any,
    factor: Any,
    wide: int,
    pinned: Any,
    codes: Any,
    low: Any,
    high: Any,
    i: Any,
    wish: Any,
    made: Any,
) -> None:
    """Choose the codes of column i that are nearest to what is wished, and note the errors made."""
    for s in range(low, high):
        at = order[group[s], i]
        t, f, code = table[s, at], factor[s, at // wide], codes[s, at]
        if not pinned[s, at]:
            code = _nearest(flat, t, wish[s - low] / f if f > 0.0 else np.float32(0.0))
            codes[s, at] = code
        made[s - low] = w[s, at] - flat[t, code] * f


@_fused_kernel
def _take_vectors(
    w: Any,
    group: Any,
    share: Any,
    order: Any,
    pivot: Any,
    table: Any,
    flat: Any,
    factor: Any,
    wide: int,
    pinned: Any,
    codes: Any,
    low: Any,
    high: Any,
    i: Any,
    wish: Any,
    made: Any,
) -> None:
    """Do as `_take_scalars` with D rows at a time."""
    dim = made.shape[0] // (high - low)
    first = low * dim
    targets = np.empty(dim, np.float32)
    weights = np.empty(dim, np.float32)
    for s in range(low, high):
        at = order[group[s * dim], i]
        t = table[s, at]
        if not pinned[s, at]:
            for d in range(dim):
                r = s * dim + d
                f = factor[r, at // wide]
                targets[d] = wish[r - first] / f if f > 0.0 else 0.0
                weights[d] = share[r] * pivot[group[r], i] * (f * f)
            codes[s, at] = _best(flat, t, targets, weights)
        for d in range(dim):
            r = s * dim + d
            entry = flat[t, codes[s, at] * dim + d]
            made[r - first] = w[r, at] - entry * factor[r, at // wide]


@_fused_kernel
def _add_fed(feedback: Any, group: Any, made: Any, left: Any, i: Any, fed: Any) -> None:
    """Set ``fed[r]`` to Σ_k made[k, r] · U[left + k, i], k up to column i; see `feed_back`."""
    fed[:] = 0.0
    top = 0
    while top < fed.shape[0]:
        end = top + 1
        while end < fed.shape[0] and group[end] == group[top]:
            end += 1
        into = fed[top:end]
        for k in range(i - left):
            f, part = feedback[group[top], left + k, i], made[k, top:end]
            for r in range(into.shape[0]):
                into[r] += f * part[r]
        top = end


@_fused_kernel
def multiply(error: Any, group: Any, h: Any, grad: Any, low: Any, high: Any) -> None:
    """Set rows ``low`` to ``high`` of ``grad`` to those of error · H."""
    columns = error.shape[1]
    grad[low:high] = 0.0
    # A few rows of H at a time serve all the rows.
    for top in range(0, columns, BATCH):
        f = error[low:high, top : top + BATCH]
        add_products(f, h, group[low:high], grad[low:high], top, 0, columns)


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
    t = ŵ_j + grad_j / H_jj. Updates ``error``, ``grad`` and ``codes``. Few elements change: those
    of a strip that may are found by bounds on their gradients, many at a time.

    Returns:
        how many codes changed in all sweeps.
    """
    dim = lut.shape[2]
    flat = lut.reshape(lut.shape[0], lut.shape[1] * dim)
    columns = w.shape[1]
    bounds = np.empty((2, columns), np.float32)
    targets = np.empty(dim, np.float32)
    weights = np.empty(dim, np.float32)
    total = 0
    for s in range(low, high):
        _set_bounds(h, table, lut, factor, wide, pinned, codes, group, s, 0, columns, bounds)
        for _ in range(sweeps):
            changed = 0
            j = _next(grad[s * dim], bounds, 0)
            while j < columns:
                t, old = table[s, j], codes[s, j]
                for d in range(dim):
                    r = s * dim + d
                    corner = h[group[r], j, j]
                    f = factor[r, j // wide]
                    weights[d] = share[r] * corner * (f * f)
                    step = grad[r, j] / (corner * f) if f > 0.0 else np.float32(0.0)
                    targets[d] = lut[t, old, d] + step
                code = _best(flat, t, targets, weights)
                gain = 0.0
                for d in range(dim):
                    before = lut[t, old, d] - targets[d]
                    after = lut[t, code, d] - targets[d]
                    gain += weights[d] * (before * before - after * after)
                if gain > 0.0:
                    changed += 1
                    codes[s, j] = code
                    for d in range(dim):
                        r = s * dim + d
                        step = (lut[t, old, d] - lut[t, code, d]) * factor[r, j // wide]
                        error[r, j] += step
                        line = h[group[r], j]
                        out = grad[r]
                        for k in range(columns):
                            out[k] += step * line[k]
                    _set_bounds(
                        h, table, lut, factor, wide, pinned, codes, group, s, j, j + 1, bounds
                    )
                j = _next(grad[s * dim], bounds, j + 1)
            total += changed
            if changed == 0:
                break
    return total


@kernel
def _set_bounds(
    h: Any,
    table: Any,
    lut: Any,
    factor: Any,
    wide: int,
    pinned: Any,
    codes: Any,
    group: Any,
    s: Any,
    left: Any,
    right: Any,
    bounds: Any,
) -> None:
    """Set between which gradients codes surely stay, of elements from ``left`` to ``right``.

    Those of vectors may always change.
    """
    if lut.shape[2] > 1:
        bounds[0, left:right], bounds[1, left:right] = np.inf, -np.inf
        return
    corners, last = h[group[s]], lut.shape[1] - 1
    for j in range(left, right):
        t, code = table[s, j], np.int64(codes[s, j])
        # Half a gap moves it; a little less is looked at, as gradients are rounded.
        half = np.float32(0.499999) * corners[j, j] * factor[s, j // wide]
        here = lut[t, code, 0]
        below = half * (lut[t, max(code - 1, 0), 0] - here)
        above = half * (lut[t, min(code + 1, last), 0] - here)
        held = pinned[s, j]
        bounds[0, j] = -np.inf if held or code == 0 else below
        bounds[1, j] = np.inf if held or code == last else above


@kernel
def _next(grad: Any, bounds: Any, j: Any) -> Any:
    """Return the first element from ``j`` on whose gradient is not within its bounds."""
    columns = grad.shape[0]
    while j + _LOOK <= columns:
        outside = 0
        for k in range(j, j + _LOOK):
            outside += not (bounds[0, k] < grad[k] < bounds[1, k])
        if outside:
            break
        j += _LOOK
    while j < columns and bounds[0, j] < grad[j] < bounds[1, j]:
        j += 1
    return j


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
