"""Compiled kernel about few changes of codes: what they do to the normal equations of entries.

Shapes and rules as in `kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel_with
from palette_core.builtins.clusterers.layerwise.entries import blocks

_fused_kernel = kernel_with(fastmath={"contract"})


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
    line = np.empty(entries)
    changed = np.empty(columns, np.int64)
    for s in range(low, high):
        n = 0
        for j in range(columns):
            t, code = table[s, j], codes[s, j]
            if wanted[t]:
                if before[s, j] != code:
                    changed[n] = j
                    n += 1
                for d in range(dim):
                    r = s * dim + d
                    f = factor[r, spot[j]]
                    right[slot[t], d, code] += np.float64(share[r]) * (grad[r, j] * f)
        for at in range(n):
            j = changed[at]
            for d in range(dim):
                r = s * dim + d
                if share[r] == 0.0:
                    continue
                own = h[group[r], j]
                line[:] = 0.0
                for i in range(columns):
                    if wanted[table[s, i]]:
                        line[codes[s, i]] += 2.0 * (own[i] * factor[r, spot[i]])
                for other in range(n):
                    i = changed[other]
                    half = own[i] * factor[r, spot[i]]
                    line[codes[s, i]] -= half
                    line[before[s, i]] += half
                part = np.float64(share[r]) * factor[r, spot[j]]
                into = square[slot[table[s, j]], d]
                for k in range(entries):
                    into[codes[s, j], k] += part * line[k]
                    into[before[s, j], k] -= part * line[k]
