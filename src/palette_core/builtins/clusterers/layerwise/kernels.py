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

from palette_core._common.kernels import inlined, inner_kernel, kernel, kernel_with
from palette_core.builtins.clusterers.layerwise.coded import decode, first_outside
from palette_core.builtins.clusterers.layerwise.products import BATCH, ZERO, add_products, blocks

_fused_kernel = kernel_with(fastmath={"contract"})
_lanes_kernel = kernel_with(fastmath={"contract", "reassoc"})  # sums of many lanes, then of these


@inlined
def nearest(flat: Any, t: Any, x: Any) -> Any:
    """Return the entry of table ``t`` nearest to ``x``, the lower of two equally near.

    Compared with all, without a branch: sooner done than a search even of 256. Not with the means
    of neighbours: entries and x are rounded, their differences hardly. ``flat`` is ``[B, K]``.
    """
    found = 0
    for k in range(flat.shape[1] - 1):
        found += x - flat[t, k] > flat[t, k + 1] - x
    return found


@inner_kernel
def best(flat: Any, t: Any, targets: Any, weights: Any) -> Any:
    """Return the entry of table ``t`` with the least Σ_d weights_d (entry_d − target_d)².

    The first of equally good ones. ``flat`` is ``[B, K · D]``.
    """
    dim = targets.shape[0]
    if dim == 1:
        return nearest(flat, t, targets[0])
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
def multiply(error: Any, group: Any, h: Any, grad: Any, low: Any, high: Any) -> None:
    """Set rows ``low`` to ``high`` of ``grad`` to those of error · H."""
    columns = error.shape[1]
    grad[low:high] = 0.0
    # A few rows of H at a time serve all the rows.
    for top in range(0, columns, BATCH):
        f = error[low:high, top : top + BATCH]
        add_products(f, h, group[low:high], grad[low:high], top, ZERO, columns)


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
    gaps: Any,
    sweeps: Any,
    low: Any,
    high: Any,
) -> Any:
    """Give each element in turn the best code, all others being as they are.

    With the rest fixed, the objective is H_jj (c − t)² plus a constant, where
    t = ŵ_j + grad_j / H_jj. Updates ``error``, ``grad`` and ``codes``. Few elements change: those
    of a strip that may are found by bounds on their gradients, many at a time. A vector stays
    where t is nearer to its entry than half the way to any other.

    Arrays and bounds:
        gaps: ``[B, K]`` float32, see `_gap`; at first -1.
        low, high: the strips to do.

    Returns:
        how many codes changed in all sweeps.
    """
    dim = lut.shape[2]
    flat = lut.reshape(lut.shape[0], lut.shape[1] * dim)
    columns = w.shape[1]
    spot = blocks(columns, wide)
    bounds = np.empty((2, columns), np.float32)
    corners = np.empty((dim, columns), np.float32)
    held = np.full(dim, -1)
    targets = np.empty(dim, np.float32)
    weights = np.empty(dim, np.float32)
    total = 0
    for s in range(low, high):
        _set_corners(h, group[s * dim : (s + 1) * dim], held, corners)
        if not _set_row(corners, table[s], flat, factor[s * dim], pinned[s], codes[s], bounds):
            _set_bounds(corners, table, flat, factor, spot, pinned, codes, s, ZERO, columns, bounds)
        for _ in range(sweeps):
            changed = 0
            j = first_outside(grad[s * dim], bounds, ZERO)
            while j < columns:
                t, old = table[s, j], codes[s, j]
                off, least = np.float32(0.0), np.float32(np.inf)
                for d in range(dim):
                    r = s * dim + d
                    corner = corners[d, j]
                    f = factor[r, spot[j]]
                    weights[d] = share[r] * corner * (f * f)
                    step = grad[r, j] / (corner * f) if f > 0.0 else np.float32(0.0)
                    targets[d] = lut[t, old, d] + step
                    off += weights[d] * step * step
                    least = min(least, weights[d])
                if dim > 1 and off < np.float32(0.2499) * least * _gap(flat, t, old, gaps):
                    j = first_outside(grad[s * dim], bounds, j + 1)
                    continue
                code = best(flat, t, targets, weights)
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
                        step = (lut[t, old, d] - lut[t, code, d]) * factor[r, spot[j]]
                        error[r, j] += step
                        line, out = h[held[d], j], grad[r]
                        for k in range(columns):
                            out[k] += step * line[k]
                    _set_bounds(
                        corners, table, flat, factor, spot, pinned, codes, s, j, j + 1, bounds
                    )
                j = first_outside(grad[s * dim], bounds, j + 1)
            total += changed
            if changed == 0:
                break
    return total


@inner_kernel
def _set_corners(h: Any, group: Any, held: Any, corners: Any) -> None:
    """Set ``corners`` to the diagonals of the matrices of some rows, which ``held`` names."""
    for d in range(group.shape[0]):
        if group[d] != held[d]:
            held[d] = group[d]
            for j in range(corners.shape[1]):
                corners[d, j] = h[held[d], j, j]


@inner_kernel
def _gap(flat: Any, t: Any, code: Any, gaps: Any) -> Any:
    """Return the least squared distance from an entry to another one, kept in ``gaps``."""
    if gaps[t, code] < 0.0:
        dim = flat.shape[1] // gaps.shape[1]
        least = np.inf
        for k in range(gaps.shape[1]):
            square = 0.0
            for d in range(dim):
                gap = flat[t, k * dim + d] - flat[t, code * dim + d]
                square += gap * gap
            if k != code and square < least:
                least = square
        gaps[t, code] = least
    return gaps[t, code]


@inner_kernel
def _set_bounds(
    corners: Any,
    table: Any,
    flat: Any,
    factor: Any,
    spot: Any,
    pinned: Any,
    codes: Any,
    s: Any,
    left: Any,
    right: Any,
    bounds: Any,
) -> None:
    """Set between which gradients codes surely stay, of elements from ``left`` to ``right``.

    Those of vectors may always change.
    """
    if corners.shape[0] > 1:
        for j in range(left, right):
            bounds[0, j] = -np.inf if pinned[s, j] else np.inf
            bounds[1, j] = -bounds[0, j]
        return
    last = flat.shape[1] - 1
    for j in range(left, right):
        t, code = table[s, j], np.int64(codes[s, j])
        # Half a gap moves it; a little less is looked at, as gradients are rounded.
        half = np.float32(0.499999) * corners[0, j] * factor[s, spot[j]]
        here = flat[t, code]
        below = half * (flat[t, max(code - 1, 0)] - here)
        above = half * (flat[t, min(code + 1, last)] - here)
        held = pinned[s, j]
        bounds[0, j] = -np.inf if held or code == 0 else below
        bounds[1, j] = np.inf if held or code == last else above


@inner_kernel
def _set_row(
    corners: Any, table: Any, flat: Any, factor: Any, pinned: Any, codes: Any, bounds: Any
) -> Any:
    """Do as `_set_bounds` with a whole row of scalars that has one table and one factor.

    Returns:
        whether it is such a row; else nothing was set.
    """
    columns, count = table.shape[0], flat.shape[1]
    others = 0
    for j in range(columns):
        others += table[j] != table[0]
    if others > 0 or corners.shape[0] > 1 or factor.shape[0] > 1:
        return False
    t = table[0]
    halves = np.empty((2, count), np.float32)  # of codes
    half = np.float32(0.499999) * factor[0]
    for k in range(count):
        halves[0, k] = half * (flat[t, k - 1] - flat[t, k]) if k > 0 else -np.inf
        halves[1, k] = half * (flat[t, k + 1] - flat[t, k]) if k + 1 < count else np.inf
    for side in range(2):
        into = bounds[side]
        decode(halves[side], codes, into)
        held = np.float32(-np.inf) if side == 0 else np.float32(np.inf)
        for j in range(columns):
            into[j] = held if pinned[j] else corners[0, j] * into[j]
    return True


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
    dim, columns = lut.shape[2], w.shape[1]
    flat = lut.reshape(lut.shape[0], lut.shape[1] * dim)
    spot = blocks(columns, wide)
    for s in range(low, high):
        t, others = table[s, 0], 0
        for j in range(columns):
            others += table[s, j] != t
        if others == 0 and dim == 1 and factor.shape[1] == 1:
            decode(flat[t], codes[s], out[s])
            f = factor[s, 0]
            for j in range(columns):
                out[s, j] = w[s, j] - out[s, j] * f
            continue
        for j in range(columns):
            for d in range(dim):
                r = s * dim + d
                out[r, j] = w[r, j] - flat[table[s, j], codes[s, j] * dim + d] * factor[r, spot[j]]


@_lanes_kernel
def row_costs(error: Any, grad: Any, share: Any, out: Any, low: Any, high: Any) -> None:
    """Set ``out[r]`` (float64) to share · Σ_j error · grad for rows ``low`` to ``high``."""
    for r in range(low, high):
        total = 0.0
        for j in range(error.shape[1]):
            total += np.float64(error[r, j]) * np.float64(grad[r, j])
        out[r] = total * np.float64(share[r])
