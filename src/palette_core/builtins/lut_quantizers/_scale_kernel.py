"""The sweep of `_scale` for tables on the CPU, table by table."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel

_EQUAL = 1e-13  # relative rounding of the running sums


@kernel
def sweep(entries: Any, ladder: Any, up: int, down: int, full: Any) -> Any:
    """Return the best scale of each table; see `_scale.best_scale`.

    Args:
        entries: ``[B, M]`` float64.
        ladder: ``[L]`` float64, ascending from 0.
        up: steps that positive entries can climb.
        down: steps that negative entries can climb.
        full: ``[B]`` float64, the place of 1/scale before which the sweep has to end.
    """
    blocks, count = entries.shape
    steps = ladder.size - 1
    middle = np.empty(steps)
    for step in range(steps):
        middle[step] = (ladder[step] + ladder[step + 1]) / 2
    most = count * max(up, down)
    gains, scales = np.empty(most), np.empty(most)
    place, climbed, heap = np.empty(count), np.empty(count, np.int64), np.empty(count, np.int64)
    out = np.zeros(blocks)
    for b in range(blocks):
        square = highest = lowest = 0.0
        held = 0
        for m in range(count):
            x = entries[b, m]
            square += x * x
            highest, lowest = max(highest, x), min(lowest, x)
            climbed[m] = 0
            climbs = (up if x >= 0 else down) > 0
            if climbs and x != 0 and middle[0] / abs(x) < full[b]:
                place[m] = middle[0] / abs(x)
                held = _push(heap, held, place, m)
        found, most_gain = 0, 0.0
        products = squares = 0.0
        while held:
            m = heap[0]
            # Scales yet to come are below 1 / place: they leave the ends this far from their tops.
            gap = max(highest - ladder[up] / place[m], -lowest - ladder[down] / place[m], 0.0)
            if gap * gap > square - most_gain + _EQUAL * square:
                break
            size, step = abs(entries[b, m]), climbed[m]
            products += size * (ladder[step + 1] - ladder[step])
            squares += ladder[step + 1] * ladder[step + 1] - ladder[step] * ladder[step]
            gains[found], scales[found] = products * products / squares, products / squares
            most_gain = max(most_gain, gains[found])
            found += 1
            climbed[m] = step = step + 1
            on = step < (up if entries[b, m] >= 0 else down) and middle[step] / size < full[b]
            if on:
                place[m] = middle[step] / size
            else:
                held -= 1
                heap[0] = heap[held]
            _sink(heap, held, place)
        # Among equals the finest scale: levels stay clear of the smallest, denormal ones.
        for i in range(found - 1, -1, -1):
            if gains[i] >= most_gain * (1 - _EQUAL):
                out[b] = scales[i]
                break
    return out


@inner_kernel
def _push(heap: Any, held: Any, place: Any, m: Any) -> Any:
    """Put an entry into the heap, whose first has the lowest place; return how many there are."""
    at = held
    while at and place[heap[(at - 1) // 2]] > place[m]:
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = m
    return held + 1


@inner_kernel
def _sink(heap: Any, held: Any, place: Any) -> None:
    """Let the first entry of the heap sink to where it belongs."""
    if held == 0:
        return
    m, at = heap[0], 0
    while 2 * at + 1 < held:
        child = 2 * at + 1
        if child + 1 < held and place[heap[child + 1]] < place[heap[child]]:
            child += 1
        if place[m] <= place[heap[child]]:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = m
