"""Compiled kernels about lines: sums of the rows of H whose elements have one code.

With line k of a row L_k = Σ_j H_j over its elements j with code k, the normal equations of entries
are sums over lines, a change of one code changes two lines, and a change of entries moves the
gradient by K lines rather than by as many as there are columns. For scalars, where every row looks
into one table and has one factor.

Shapes and rules as in `kernels`; lines: ``[M, K, C]`` float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel_with
from palette_core.builtins.clusterers.layerwise.products import TILED, ZERO
from palette_core.builtins.clusterers.layerwise.runs import set_lines
from palette_core.builtins.clusterers.layerwise.vectors import FOUR, LANES, sum_coded

_LOOK = 64  # codes looked at together
_fused_kernel = kernel_with(fastmath={"contract"})
_inner_kernel = kernel_with(fastmath={"contract"}, no_cpython_wrapper=True)


@_fused_kernel
def sum_lines(
    grad: Any,
    codes: Any,
    lines: Any,
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
    """Set the lines of rows ``low`` to ``high``, and add up what they say about the best entries.

    Arrays and bounds: as in `entries.normal_equations`.
    """
    entries = right.shape[2]
    top = low
    while top < high:
        end = top + 1
        while end < high and group[end] == group[top]:
            end += 1
        if TILED:
            set_lines(codes[top:end], h[group[top]], lines[top:end])
        else:
            _set_lines(codes[top:end], h[group[top]], lines[top:end])
        top = end
    line = np.empty(entries + FOUR, np.float32)
    for r in range(low, high):
        if not wanted[table[r, 0]]:
            continue
        f, own = factor[r, 0], slot[table[r, 0]]
        part = np.float64(share[r]) * f
        _sum_by_code(grad[r], codes[r], ZERO, line)
        for k in range(entries):
            right[own, 0, k] += part * line[k]
        into = square[own, 0]
        for k in range(entries):
            _sum_by_code(lines[r, k], codes[r], np.int64(k), line)
            into[k, k] += part * f * line[k]
            for i in range(k + 1, entries):  # H is symmetric
                into[k, i] += part * f * line[i]
                into[i, k] += part * f * line[i]


@_inner_kernel
def _sum_by_code(values: Any, codes: Any, first: Any, line: Any) -> None:
    """Set ``line`` to the sums of values by code; those of codes before ``first`` may be others."""
    line[:] = 0.0
    whole = 0
    if TILED:
        whole = len(values) // LANES * LANES
        for code in range(first // FOUR * FOUR, len(line) - FOUR, FOUR):
            sum_coded(values, ZERO, codes, np.int64(code), np.int64(whole), line)
    for j in range(whole, len(values)):
        line[codes[j]] += values[j]


@_inner_kernel
def _set_lines(codes: Any, h: Any, lines: Any) -> None:
    """Do as `runs.set_lines` without a compiler."""
    lines[:] = 0.0
    for r in range(codes.shape[0]):
        for j in range(codes.shape[1]):
            lines[r, codes[r, j]] += h[j]


@_fused_kernel
def change_lines(
    grad: Any,
    codes: Any,
    before: Any,
    lines: Any,
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
    """Bring lines up to date with changes of codes, and add up what these do to A, and b anew.

    Where an element j goes from code a to b, with u one at b and -1 at a, and v its column of the
    lines before, A becomes A + u vᵀ + v uᵀ + H_jj u uᵀ.

    Arrays and bounds: as in `changes.add_changes`.
    """
    entries, columns = right.shape[2], grad.shape[1]
    line, twice = np.empty(entries + FOUR, np.float32), np.empty(entries)
    changed = np.empty(columns, np.int64)
    for r in range(low, high):
        if not wanted[table[r, 0]]:
            continue
        f, own = factor[r, 0], slot[table[r, 0]]
        part = np.float64(share[r]) * f
        _sum_by_code(grad[r], codes[r], ZERO, line)
        for k in range(entries):
            right[own, 0, k] += part * line[k]
        into = square[own, 0]
        for at in range(_differing(codes[r], before[r], changed)):
            j = changed[at]
            a, b = before[r, j], codes[r, j]
            for k in range(entries):
                twice[k] = 2.0 * part * f * lines[r, k, j]
            more, less = into[b], into[a]
            for k in range(entries):
                more[k] += twice[k]
            for k in range(entries):
                less[k] -= twice[k]
            own_row = h[group[r], j]
            corner = part * f * own_row[j]
            into[a, a] += corner
            into[b, b] += corner
            into[a, b] -= corner
            into[b, a] -= corner
            old, new = lines[r, a], lines[r, b]
            for i in range(columns):
                old[i] -= own_row[i]
            for i in range(columns):
                new[i] += own_row[i]


@_inner_kernel
def _differing(a: Any, b: Any, found: Any) -> Any:
    """Return at how many places two rows of codes differ; sets ``found`` to them."""
    n, columns = np.int64(0), len(a)
    for left in range(0, columns, _LOOK):
        right = min(columns, left + _LOOK)
        x, y, same = a[left:right], b[left:right], 0
        for k in range(right - left):
            same += x[k] == y[k]
        if same < right - left:
            for k in range(right - left):
                if x[k] != y[k]:
                    found[n] = left + k
                    n += 1
    return n


@_fused_kernel
def move_by_lines(
    table: Any,
    factor: Any,
    codes: Any,
    step: Any,
    moved: Any,
    lines: Any,
    error: Any,
    grad: Any,
    low: Any,
    high: Any,
) -> None:
    """Bring error and gradient up to date when entries move; see `entries.move_entries`."""
    entries, columns = lines.shape[1], error.shape[1]
    for r in range(low, high):
        t, f = table[r, 0], factor[r, 0]
        if not moved[t]:
            continue
        for j in range(columns):
            error[r, j] -= step[t, codes[r, j], 0] * f
        out = grad[r]
        for k in range(entries):
            size, line = step[t, k, 0] * f, lines[r, k]
            if size != 0.0:
                for j in range(columns):
                    out[j] -= size * line[j]
