"""The sweep of `_scale` for tables on the CPU, table by table."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel

_EQUAL = 1e-13  # relative rounding of the running sums


@kernel
def sweep(entries: Any, ladder: Any, up: int, down: int, window: int, full: Any) -> Any:
    """Return the best scale of each table; see `_scale.best_scale`.

    The sweep begins where the levels of a table reach half of their range: coarser ones can be
    doubled, at half the scale, so none of them is better than all that follow.

    Args:
        entries: ``[B, M]`` float64.
        ladder: ``[L]`` float64, ascending from 0; with a level, its double is on it, or beyond
            its end.
        up: steps that positive entries can climb.
        down: steps that negative entries can climb.
        window: steps that the highest and the lowest can climb together; 0 for any.
        full: ``[B]`` float64, the place of 1/scale before which the sweep has to end.
    """
    blocks, count = entries.shape
    steps = ladder.size - 1
    middle = np.empty(steps)
    for step in range(steps):
        middle[step] = (ladder[step] + ladder[step + 1]) / 2
    most = count * max(up, down) + 1
    met = np.empty((most, 2))
    climb = np.empty(count), np.empty(count), np.empty(count, np.int64), np.empty(count, np.int64)
    out = np.zeros(blocks)
    for b in range(blocks):
        highest = lowest = 0.0
        for m in range(count):
            highest, lowest = max(highest, entries[b, m]), max(lowest, -entries[b, m])
        begin, clips = _ends(ladder, highest, lowest, up, down, window)
        held = _start(entries[b], ladder, middle, up, down, begin, full[b], climb, met)
        found = _climb(
            entries[b], ladder, middle, up, down, highest, lowest, clips, full[b], climb, held, met
        )
        out[b] = _finest(met, found)
    return out


@inner_kernel
def _start(
    x: Any,
    ladder: Any,
    middle: Any,
    up: int,
    down: int,
    begin: Any,
    full: Any,
    climb: Any,
    met: Any,
) -> Any:
    """Put every entry on its level at ``begin``, and into the heap; return how many can climb."""
    size, place, climbed, heap = climb
    held, product, square = 0, 0.0, 0.0
    for m in range(x.size):
        size[m], limit = abs(x[m]), up if x[m] >= 0 else down
        if size[m] == 0.0:
            continue
        step = min(limit, np.searchsorted(middle, begin * size[m]))
        climbed[m] = step
        product += size[m] * ladder[step]
        square += ladder[step] * ladder[step]
        if step < limit and middle[step] / size[m] < full:
            place[m] = middle[step] / size[m]
            held = _push(heap, held, place, m)
    met[0, 0], met[0, 1] = product, square
    return held


@inner_kernel
def _climb(
    x: Any, ladder: Any, middle: Any, up: int, down: int, highest: Any, lowest: Any, clips: Any,
    full: Any, climb: Any, held: Any, met: Any,
) -> Any:  # fmt: skip
    """Let entries climb, one level at a time, in the order of their places.

    Writes Σ size · level and Σ level² of every state to ``met``, and returns how many there are.
    """
    size, place, climbed, heap = climb
    whole = 0.0
    for m in range(x.size):
        whole += x[m] * x[m]
    found, product, square = 1, met[0, 0], met[0, 1]
    top, under = product * product, square if square > 0.0 else 1.0  # the most gain, a fraction
    while held:
        m = heap[0]
        if place[m] > clips:
            # Scales yet to come are below 1 / place: they leave the ends so far from the tops.
            gap = max(highest - ladder[up] / place[m], lowest - ladder[down] / place[m])
            if gap > 0.0 and gap * gap > whole * (1.0 + _EQUAL) - top / under:
                break
        step = climbed[m]
        product += size[m] * (ladder[step + 1] - ladder[step])
        square += ladder[step + 1] * ladder[step + 1] - ladder[step] * ladder[step]
        met[found, 0], met[found, 1] = product, square
        found += 1
        if product * product * under > top * square:
            top, under = product * product, square
        climbed[m] = step = step + 1
        on = step < (up if x[m] >= 0 else down)
        if on:
            place[m] = middle[step] / size[m]
        if not on or place[m] >= full:
            held -= 1
            heap[0] = heap[held]
        _sink(heap, held, place)
    return found


@inner_kernel
def _finest(met: Any, found: Any) -> Any:
    """Return the scale of the most gain: the finest of equals, clear of the smallest levels."""
    highest = 0.0
    for i in range(found):
        if met[i, 1] > 0.0:
            highest = max(highest, met[i, 0] * met[i, 0] / met[i, 1])
    for i in range(found - 1, -1, -1):
        if met[i, 1] > 0.0 and met[i, 0] * met[i, 0] / met[i, 1] >= highest * (1.0 - _EQUAL):
            return met[i, 0] / met[i, 1]
    return 0.0


@inner_kernel
def _ends(ladder: Any, highest: float, lowest: float, up: int, down: int, window: int) -> Any:
    """Return where the sweep has to begin, and where the first end of a table is clipped.

    Both are places of 1/scale; ``highest`` and ``lowest`` are magnitudes.
    """
    begin = clips = np.inf
    for size, limit in ((highest, up), (lowest, down)):
        if size > 0.0 and limit > 0:
            half = 0.5 * (2.0 * ladder[limit - 1] - ladder[limit])
            begin, clips = min(begin, half / size), min(clips, ladder[limit] / size)
    if window > 0 and highest + lowest > 0.0:
        begin = min(begin, (0.5 * window - 1.0) / (highest + lowest))
    return max(begin, 0.0) if begin < np.inf else 0.0, clips


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
