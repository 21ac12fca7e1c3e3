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
from palette_core.builtins.clusterers.layerwise.changes import look, sums_by_code
from palette_core.builtins.clusterers.layerwise.entries import add_runs, pick
from palette_core.builtins.clusterers.layerwise.products import ZERO
from palette_core.builtins.clusterers.layerwise.vectors import LINE

_fused_kernel = kernel_with(fastmath={"contract"})
_DEEP = 256  # elements of a row whose lines are added up together
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
    entries, columns, rows = right.shape[2], grad.shape[1], high - low
    picked, ends, begin, where = pick(
        table[low:high], codes[low:high], wanted, slot, entries, _DEEP
    )
    _set_lines(picked, ends, begin, codes[low:high], group[low:high], h, lines[low:high])
    value, line = np.empty(columns, np.float32), np.empty(entries, np.float32)
    code = np.empty(columns, np.int32)
    for s in range(rows):
        if begin[s, -1] == 0:
            continue
        r = low + s
        f = factor[r, 0]
        part = np.float64(share[r]) * f
        for j in range(columns):
            code[j] = codes[r, j]
            value[j] = grad[r, j]
        sums_by_code(value, code, line, ZERO)
        for k in range(entries):
            right[where[s], 0, k] += part * line[k]
        for k in range(entries):
            sums_by_code(lines[r, k], code, line, np.int64(k))
            into = square[where[s], 0]
            into[k, k] += part * f * line[k]
            for i in range(k + 1, entries):  # H is symmetric
                into[k, i] += part * f * line[i]
                into[i, k] += part * f * line[i]


@_inner_kernel
def _set_lines(
    picked: Any, ends: Any, begin: Any, codes: Any, group: Any, h: Any, lines: Any
) -> None:
    """Set lines of some rows, whose elements `entries.pick` has sorted; some columns at a time."""
    rows, entries, columns = lines.shape
    parts = begin.shape[1] - 1
    code, place = np.empty(picked.shape, np.int32), np.empty(picked.shape, np.int32)
    for s in range(rows):
        for part in range(parts):
            for at in range(begin[s, part], begin[s, part + 1]):
                code[s, at] = codes[s, picked[s, at]]
                place[s, at] = picked[s, at] - part * _DEEP
    ones = np.ones(columns, np.float32)
    sums = np.empty((rows, entries, LINE), np.float32)
    # Rows of H lie far apart, often where the cache has room for a few of them only: what is
    # added up together is put together first.
    near = np.empty((1, min(columns, _DEEP), LINE), np.float32)
    for left in range(0, columns, LINE):
        base, end = max(0, min(left, columns - LINE)), min(columns, left + LINE)
        sums[:] = 0.0
        for part in range(parts):
            held = -1
            for s in range(rows):
                if group[s] != held:
                    held = group[s]
                    _bring(h[held], part * _DEEP, base, near[0])
                these = (place[s], ends[s], code[s], ones, begin[s, part : part + 2])
                add_runs(near, ZERO, ZERO, *these, sums[s])
        for s in range(rows):
            for k in range(entries):
                own, into = sums[s, k], lines[s, k, base:end]  # some of them once more
                for j in range(into.shape[0]):
                    into[j] = own[j]


@_inner_kernel
def _bring(h: Any, top: Any, left: Any, near: Any) -> None:
    """Set ``near`` to the part of ``h`` that begins there, as far as this goes."""
    for i in range(min(near.shape[0], h.shape[0] - top)):
        source, into = h[top + i, left : left + LINE], near[i]
        for j in range(LINE):
            into[j] = source[j]


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
    value, line = np.empty(columns, np.float32), np.empty(entries, np.float32)
    code, changed = np.empty(columns, np.int32), np.empty(columns, np.int64)
    for r in range(low, high):
        n, own = look(table[r], codes[r], before[r], wanted, slot, code, changed)
        if own < 0:
            continue
        f = factor[r, 0]
        part = np.float64(share[r]) * f
        for j in range(columns):
            value[j] = grad[r, j]
        sums_by_code(value, code, line, ZERO)
        for k in range(entries):
            right[own, 0, k] += part * line[k]
        into = square[own, 0]
        for at in range(n):
            j = changed[at]
            a, b = before[r, j], codes[r, j]
            for k in range(entries):
                twice = 2.0 * part * f * lines[r, k, j]
                into[b, k] += twice
                into[a, k] -= twice
            own_row = h[group[r], j]
            corner = part * f * own_row[j]
            into[a, a] += corner
            into[b, b] += corner
            into[a, b] -= corner
            into[b, a] -= corner
            old, new = lines[r, a], lines[r, b]
            for i in range(columns):
                old[i] -= own_row[i]
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
