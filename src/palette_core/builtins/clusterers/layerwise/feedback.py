"""Compiled error feedback: codes column by column, each aimed at what the errors before call for.

Shapes and rules as in `kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel_with
from palette_core.builtins.clusterers.layerwise.products import BATCH, ZERO, add_products, blocks
from palette_core.builtins.clusterers.layerwise.taking import add_fed, take_scalars, take_vectors

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
    error: Any,
    grad: Any,
    costs: Any,
    low: Any,
    high: Any,
) -> None:
    """Choose codes column by column, each with the errors of those before it fed into it.

    With H = (I + U) diag(d) (I + U)ᵀ, U strictly upper triangular, in the order of the columns,
    the objective is Σ_i d_i (e_i + Σ_{k<i} e_k U_ki)²: column i aims at w_i + Σ_{k<i} e_k U_ki
    (Frantar et al. 2022, arXiv 2210.17323; in this form Chee et al. 2023, arXiv 2307.13304).
    A pinned element cannot take its aim; its error e_i, which is w_i where its entry is zero, is
    fed into later columns like any other.

    What column i misses its aim by is p_i: the objective is Σ_i d_i p_i², and its slope, error · H,
    is p diag(d) (I + U)ᵀ, half of a product.

    Arrays and bounds:
        order: ``[G, C]`` int32, which column comes i-th.
        feedback: ``[G, C, C]`` float32, U + Uᵀ; ``pivot``: ``[G, C]`` float32, d.
        costs: ``[M]`` float64, of each row.
        low, high: the strips to do.
    """
    dim = lut.shape[2]
    flat = lut.reshape(lut.shape[0], lut.shape[1] * dim)
    columns = w.shape[1]
    spot = blocks(columns, wide)
    first = low * dim
    rows = (high - low) * dim
    aim = np.empty((rows, columns), np.float32)  # and then p
    for r in range(rows):
        for i in range(columns):
            aim[r, i] = w[first + r, order[group[first + r], i]]
    made = np.empty((BATCH, rows), np.float32)
    turned = np.empty((rows, BATCH), np.float32)
    fed = np.empty(rows, np.float32)
    own = group[first : first + rows]
    held, others = _look(pinned[low:high], table[low:high])
    others = others or factor.shape[1] > 1
    # Errors are fed to later columns of a batch one by one, and to all behind it at once.
    for left in range(0, columns, BATCH):
        right = min(columns, left + BATCH)
        if dim == 1:
            take_scalars(
                w[low:high],
                own,
                order,
                feedback,
                table[low:high],
                flat,
                factor[low:high],
                spot,
                pinned[low:high],
                codes[low:high],
                aim,
                left,
                right,
                held,
                others,
                made,
            )
        else:
            for i in range(left, right):
                add_fed(feedback, own, made, left, i, fed)
                for r in range(rows):
                    fed[r] += aim[r, i]
                take_vectors(
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
                    aim[r, i] = fed[r] - w[first + r, order[own[r], i]] + made[i - left, r]
        for r in range(rows):
            places, line = order[own[r], left:right], error[first + r]
            for k in range(right - left):
                turned[r, k] = made[k, r]
            own_errors = turned[r]
            for k in range(right - left):
                line[places[k]] = own_errors[k]
        add_products(turned[:, : right - left], feedback, own, aim, left, right, columns)
    _set_slopes(aim, own, share[first : first + rows], order, feedback, pivot, grad, costs, first)


@_inner_kernel
def _set_slopes(
    missed: Any,
    group: Any,
    share: Any,
    order: Any,
    feedback: Any,
    pivot: Any,
    grad: Any,
    costs: Any,
    first: Any,
) -> None:
    """Set costs of some rows, from ``first`` on, and their slopes, from p; overwrites that."""
    rows, columns = missed.shape
    slope = np.empty((rows, columns), np.float32)
    for r in range(rows):
        weights, line, into, total = pivot[group[r]], missed[r], slope[r], 0.0
        for i in range(columns):
            weighted = weights[i] * line[i]
            total += np.float64(weighted) * np.float64(line[i])
            line[i] = into[i] = weighted
        costs[first + r] = total * np.float64(share[r])
    # On the diagonal of (I + U)ᵀ are blocks of which one half is zero; left of them all counts.
    block, none = np.zeros((1, BATCH, BATCH), np.float32), np.zeros(rows, np.int32)
    for left in range(0, columns, BATCH):
        right = min(columns, left + BATCH)
        top = 0
        while top < rows:
            end = top + 1
            while end < rows and group[end] == group[top]:
                end += 1
            for i in range(right - left):
                source, into = feedback[group[top], left + i, left:right], block[0, i]
                for j in range(i):
                    into[j] = source[j]
            part, out = missed[top:end, left:right], slope[top:end, left:right]
            add_products(part, block, none[top:end], out, ZERO, ZERO, np.int64(right - left))
            top = end
        part = missed[:, left:right]
        add_products(part, feedback, group, slope, np.int64(left), ZERO, np.int64(left))
    for r in range(rows):
        places, line, into = order[group[r]], slope[r], grad[first + r]
        for i in range(columns):
            into[places[i]] = line[i]


@_inner_kernel
def _look(pinned: Any, table: Any) -> Any:
    """Return whether any element is pinned, and whether a row looks into several tables."""
    held = others = 0
    for r in range(table.shape[0]):
        fixed, tables = pinned[r], table[r]
        first = tables[0]
        for j in range(table.shape[1]):
            held += fixed[j]
        for j in range(table.shape[1]):
            others += tables[j] != first
    return held > 0, others > 0
