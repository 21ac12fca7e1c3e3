"""Compiled kernel about few changes of codes: what they do to the normal equations of entries.

Shapes and rules as in `kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel_with
from palette_core.builtins.clusterers.layerwise.products import ZERO, blocks

_fused_kernel = kernel_with(fastmath={"contract"})
# Sums in any order, so that many are added at once.
_lanes_kernel = kernel_with(fastmath={"contract", "reassoc", "nsz"}, no_cpython_wrapper=True)

_COMPARED = 16  # codes that are compared one by one: for more it is sooner to look each one up


@_fused_kernel
def add_changes(
    grad: Any,
    codes: Any,
    before: Any,
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
    """Add up what changes of codes in strips ``low`` to ``high`` do to A, and b anew.

    With S[j, k] = 1 where element j has code k, and D what changes of it, A = Sᵀ H S becomes
    A + X + Xᵀ, where X = Dᵀ H (S + D / 2): each change costs a line of H, not a matrix.

    Arrays and bounds:
        before: ``[M / D, C]`` uint8, the codes of A.
        wanted, slot, right: as in `entries.normal_equations`.
        square: ``[slots, D, K, K]`` float64, 2 X; added to.
    """
    dim, entries, columns = right.shape[1], right.shape[2], grad.shape[1]
    spot = blocks(columns, wide)
    value, line = np.empty(columns, np.float32), np.empty(entries, np.float32)
    code = np.empty(columns, np.int32)
    scale = np.empty((dim, columns), np.float32)
    changed = np.empty(columns, np.int64)
    for s in range(low, high):
        n, own_slot = look(table[s], codes[s], before[s], wanted, slot, code, changed)
        if own_slot < 0:
            continue
        for d in range(dim):
            r = s * dim + d
            for j in range(columns):
                scale[d, j] = factor[r, spot[j]]
                value[j] = grad[r, j] * scale[d, j]
            sums_by_code(value, code, line, ZERO)
            for k in range(entries):
                right[own_slot, d, k] += np.float64(share[r]) * line[k]
        for at in range(n):
            j = changed[at]
            for d in range(dim):
                r = s * dim + d
                if share[r] == 0.0:
                    continue
                own = h[group[r], j]
                for i in range(columns):
                    value[i] = own[i] * scale[d, i]
                sums_by_code(value, code, line, ZERO)
                for other in range(n):
                    i = changed[other]
                    half = np.float32(0.5) * value[i]
                    line[codes[s, i]] -= half
                    line[before[s, i]] += half
                part = 2.0 * np.float64(share[r]) * scale[d, j]
                into = square[own_slot, d]
                for k in range(entries):
                    into[codes[s, j], k] += part * line[k]
                    into[before[s, j], k] -= part * line[k]


@inner_kernel
def look(
    table: Any, codes: Any, before: Any, wanted: Any, slot: Any, code: Any, changed: Any
) -> Any:
    """Set which code of a wanted table each element of a strip has, and which have changed.

    Returns:
        how many have changed; where the sums of the wanted table are, or -1.
    """
    n, own = np.int64(0), np.int64(-1)
    for j in range(table.shape[0]):
        t = table[j]
        code[j] = -1
        if wanted[t]:
            code[j], own = codes[j], slot[t]
            if before[j] != codes[j]:
                changed[n] = j
                n += 1
    return n, own


@_lanes_kernel
def sums_by_code(value: Any, code: Any, line: Any, first: Any) -> None:
    """Set ``line`` to the sums of values by code; where a code is -1 a value counts nothing.

    Sums of codes before ``first`` may stay as they are.
    """
    if line.shape[0] > _COMPARED:
        line[:] = 0.0
        for i in range(value.shape[0]):
            if code[i] >= 0:
                line[code[i]] += value[i]
        return
    for k in range(first, line.shape[0]):
        total = np.float32(0.0)
        for i in range(value.shape[0]):
            total += value[i] if code[i] == k else np.float32(0.0)
        line[k] = total
