"""Scales by which levels round to given entries: compiled, table by table."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel

_ROOM = 2048  # intervals of scales held at once; tables that need more count as not exact

_LEAST = 1e-9  # of a scale: narrower intervals are ends of rounding that touch


@kernel
def exact_scales(low: Any, high: Any, ladder: Any) -> Any:
    """Return the largest scale with which a level times it lies in the interval of every entry.

    The scales that serve one entry are intervals, one for each level. Those that serve all are
    found by intersecting them, from the largest entry to the smallest.

    Args:
        low: ``[B, M]`` float64 not negative, each row from the largest to the smallest: lower
            ends of the intervals. Zeros at the end are left out.
        high: ``[B, M]`` float64, the upper ends.
        ladder: ``[L]`` float64, ascending, positive: magnitudes of levels.

    Returns:
        ``[B, 2]`` float64, the ends of an interval of such scales; 0 where there is none.
    """
    blocks, count = low.shape
    out = np.zeros((blocks, 2))
    now, later = np.empty((_ROOM, 2)), np.empty((_ROOM, 2))
    for b in range(blocks):
        now[0, 0], now[0, 1] = 0.0, np.inf
        held = 1
        for m in range(count):
            if low[b, m] <= 0.0:
                break
            held = _narrow(now, held, low[b, m], high[b, m], ladder, later)
            now, later = later, now
            if held == 0:
                break
        if held and now[held - 1, 1] < np.inf:
            out[b] = now[held - 1]
    return out


@kernel
def _narrow(now: Any, held: int, low: float, high: float, ladder: Any, later: Any) -> int:
    """Intersect ascending intervals with those that serve one entry; return how many are left."""
    found = 0
    for i in range(held):
        begin = found
        # Levels from the largest: scales ascend.
        first = ladder.size - 1
        if now[i, 0] > 0.0:
            first = np.searchsorted(ladder, high / now[i, 0], side="right") - 1
        for q in range(first, -1, -1):
            start, end = low / ladder[q], high / ladder[q]
            if start > now[i, 1]:
                break
            start, end = max(start, now[i, 0]), min(end, now[i, 1])
            if end - start < _LEAST * end:
                continue
            if found > begin and start <= later[found - 1, 1]:
                later[found - 1, 1] = max(end, later[found - 1, 1])
            else:
                if found == later.shape[0]:
                    return 0
                later[found, 0], later[found, 1] = start, end
                found += 1
    return found
