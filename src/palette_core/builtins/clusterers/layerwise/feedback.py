"""Compiled error feedback: codes column by column, each aimed at what the errors before call for.

Shapes and rules as in `kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel_with
from palette_core.builtins.clusterers.layerwise.kernels import best, nearest
from palette_core.builtins.clusterers.layerwise.products import BATCH, add_products, blocks

_fused_kernel = kernel_with(fastmath={"contract"})
_inner_kernel = kernel_with(fastmath={"contract"}, no_cpython_wrapper=True)


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
    spot = blocks(columns, wide)
    first = low * dim
    rows = (high - low) * dim
    aim = np.empty((rows, columns), np.float32)
    for r in range(rows):
        for i in range(columns):
            aim[r, i] = w[first + r, order[group[first + r], i]]
    made = np.empty((BATCH, rows), np.float32)
    turned = np.empty((rows, BATCH), np.float32)
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
                    spot,
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
                    spot,
                    pinned,
                    codes,
                    low,
                    high,
                    i,
                    fed,
                    made[i - left],
                )
        for r in range(rows):
            for k in range(right - left):
                turned[r, k] = made[k, r]
        add_products(turned[:, : right - left], feedback, own, aim, left, right, columns)


@_inner_kernel
def _take_scalars(
    w: Any,
    group: Any,
    order: Any,
    table: Any,
    flat: Any,
    factor: Any,
    spot: Any,
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
        t, f, code = table[s, at], factor[s, spot[at]], codes[s, at]
        if not pinned[s, at]:
            code = nearest(flat, t, wish[s - low] / f if f > 0.0 else np.float32(0.0))
            codes[s, at] = code
        made[s - low] = w[s, at] - flat[t, code] * f


@_inner_kernel
def _take_vectors(
    w: Any,
    group: Any,
    share: Any,
    order: Any,
    pivot: Any,
    table: Any,
    flat: Any,
    factor: Any,
    spot: Any,
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
                f = factor[r, spot[at]]
                targets[d] = wish[r - first] / f if f > 0.0 else 0.0
                weights[d] = share[r] * pivot[group[r], i] * (f * f)
            codes[s, at] = best(flat, t, targets, weights)
        for d in range(dim):
            r = s * dim + d
            entry = flat[t, codes[s, at] * dim + d]
            made[r - first] = w[r, at] - entry * factor[r, spot[at]]


@_inner_kernel
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
