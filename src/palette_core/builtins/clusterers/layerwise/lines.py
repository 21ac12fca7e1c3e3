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
from palette_core.builtins.clusterers.layerwise.coded import (
    FOUR,
    decode,
    differing,
    sum_by_code,
)
from palette_core.builtins.clusterers.layerwise.products import TILED, ZERO
from palette_core.builtins.clusterers.layerwise.runs import set_lines

_fused_kernel = kernel_with(fastmath={"contract"})


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
            for r in range(top, end):
                lines[r] = 0.0
                for j in range(codes.shape[1]):
                    lines[r, codes[r, j]] += h[group[r], j]
        top = end
    line = np.empty(entries + FOUR, np.float32)
    for r in range(low, high):
        if not wanted[table[r, 0]]:
            continue
        f, own = factor[r, 0], slot[table[r, 0]]
        part = np.float64(share[r]) * f
        sum_by_code(grad[r], codes[r], ZERO, line)
        for k in range(entries):
            right[own, 0, k] += part * line[k]
        into = square[own, 0]
        for k in range(entries):
            sum_by_code(lines[r, k], codes[r], np.int64(k), line)
            into[k, k] += part * f * line[k]
            for i in range(k + 1, entries):  # H is symmetric
                into[k, i] += part * f * line[i]
                into[i, k] += part * f * line[i]


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
        sum_by_code(grad[r], codes[r], ZERO, line)
        for k in range(entries):
            right[own, 0, k] += part * line[k]
        into = square[own, 0]
        for at in range(differing(codes[r], before[r], changed)):
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
    sizes, moves = np.empty(entries, np.float32), np.empty(columns, np.float32)
    for r in range(low, high):
        t, f = table[r, 0], factor[r, 0]
        if not moved[t]:
            continue
        for k in range(entries):
            sizes[k] = step[t, k, 0] * f
        decode(sizes, codes[r], moves)
        gone, out = error[r], grad[r]
        for j in range(columns):
            gone[j] -= moves[j]
        for k in range(entries):
            size, line = sizes[k], lines[r, k]
            if size != 0.0:
                for j in range(columns):
                    out[j] -= size * line[j]
