"""Compiled choice of the codes of a column, or of a batch of them, for `feedback`.

Shapes and rules as in `kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel_with
from palette_core.builtins.clusterers.layerwise.kernels import best
from palette_core.builtins.clusterers.layerwise.products import BATCH

_inner_kernel = kernel_with(fastmath={"contract"}, no_cpython_wrapper=True)


@_inner_kernel
def take_scalars(
    w: Any,
    group: Any,
    order: Any,
    feedback: Any,
    table: Any,
    flat: Any,
    factor: Any,
    spot: Any,
    pinned: Any,
    codes: Any,
    aim: Any,
    left: Any,
    right: Any,
    held: Any,
    others: Any,
    made: Any,
) -> None:
    """Choose the codes of some columns of all these rows, and note errors and missed aims.

    What belongs to one column lies side by side here, for many rows to be done at once.

    Arrays and bounds:
        held: whether any element is pinned; others: whether a row has several tables or factors.
    """
    rows = w.shape[0]
    own, wish = np.empty((BATCH, rows), np.float32), np.empty((BATCH, rows), np.float32)
    found, fed = np.empty((BATCH, rows), np.int32), np.empty(rows, np.float32)
    entries, unit = np.empty((flat.shape[1], rows), np.float32), np.empty(rows, np.float32)
    for r in range(rows):
        places, line, goal = order[group[r], left:right], w[r], aim[r, left:right]
        for k in range(right - left):
            own[k, r], wish[k, r] = line[places[k]], goal[k]
    for i in range(left, right):
        if i == left or others:
            _set_entries(group, order, table, flat, factor, spot, i, entries, unit)
        add_fed(feedback, group, made, left, i, fed)
        for r in range(rows):
            x = fed[r] + wish[i - left, r]
            wish[i - left, r] = x
            fed[r] = x / unit[r] if unit[r] > 0.0 else np.float32(0.0)
        _take_nearest(entries, unit, fed, own[i - left], found[i - left], made[i - left])
        if held:
            for r in range(rows):
                at = order[group[r], i]
                if pinned[r, at]:
                    found[i - left, r] = codes[r, at]
                    made[i - left, r] = w[r, at] - entries[codes[r, at], r] * unit[r]
        goals, weights, errors = wish[i - left], own[i - left], made[i - left]
        for r in range(rows):
            goals[r] = goals[r] - weights[r] + errors[r]
    for r in range(rows):
        places, line_of_codes = order[group[r], left:right], codes[r]
        missed = aim[r, left:right]
        for k in range(right - left):
            line_of_codes[places[k]] = found[k, r]
            missed[k] = wish[k, r]


@_inner_kernel
def _set_entries(
    group: Any,
    order: Any,
    table: Any,
    flat: Any,
    factor: Any,
    spot: Any,
    i: Any,
    entries: Any,
    unit: Any,
) -> None:
    """Set entries and factors of all rows in column i."""
    for r in range(unit.shape[0]):
        at = order[group[r], i]
        unit[r] = factor[r, spot[at]]
        for k in range(entries.shape[0]):
            entries[k, r] = flat[table[r, at], k]


@_inner_kernel
def _take_nearest(entries: Any, unit: Any, x: Any, own: Any, found: Any, made: Any) -> None:
    """Do as `kernels.nearest` for all rows of a column, and set the errors of the weights."""
    for r in range(x.shape[0]):
        found[r] = 0
    k, last = 0, entries.shape[0] - 1
    while k < last:  # some at a time, for their sum not to be loaded and stored for each
        e0, e1 = entries[k], entries[k + 1]
        if k + 3 <= last:
            e2, e3 = entries[k + 2], entries[k + 3]
            for r in range(x.shape[0]):
                over = np.int32(x[r] - e0[r] > e1[r] - x[r])
                over += np.int32(x[r] - e1[r] > e2[r] - x[r])
                found[r] += over + np.int32(x[r] - e2[r] > e3[r] - x[r])
            k += 3
        else:
            for r in range(x.shape[0]):
                found[r] += np.int32(x[r] - e0[r] > e1[r] - x[r])
            k += 1
    for r in range(x.shape[0]):
        made[r] = own[r] - entries[found[r], r] * unit[r]


@_inner_kernel
def take_vectors(
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
    """Do as `take_scalars` with D rows at a time."""
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
def add_fed(feedback: Any, group: Any, made: Any, left: Any, i: Any, fed: Any) -> None:
    """Set ``fed[r]`` to Σ_k made[k, r] · U[left + k, i], k up to column i; see `feedback`."""
    fed[:] = 0.0
    top = 0
    while top < fed.shape[0]:
        end = top + 1
        while end < fed.shape[0] and group[end] == group[top]:
            end += 1
        factors = feedback[group[top], i, left:i]  # U + Uᵀ is symmetric, and these side by side
        into = fed[top:end]
        k = 0
        while k + 4 <= i - left:
            f0, f1, f2, f3 = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
            p0, p1 = made[k, top:end], made[k + 1, top:end]
            p2, p3 = made[k + 2, top:end], made[k + 3, top:end]
            for r in range(into.shape[0]):
                into[r] += f0 * p0[r] + f1 * p1[r] + f2 * p2[r] + f3 * p3[r]
            k += 4
        while k < i - left:
            f0, p0 = factors[k], made[k, top:end]
            for r in range(into.shape[0]):
                into[r] += f0 * p0[r]
            k += 1
        top = end
