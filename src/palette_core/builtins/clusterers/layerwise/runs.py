"""Sums of lines of a matrix by the codes that a row of a weight has for them, for many rows.

What counts on a processor is how often a line is loaded, and how often a loop ends where it did not
expect that. So the codes of some rows together are one number, lines with one such number are added
up once for all these rows, and sums of as many lines follow each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel
from palette_core.builtins.clusterers.layerwise.vectors import STRIP, copy_strip, sum_strips

_CELLS = 64  # numbers that the codes of some rows together may be


@inner_kernel
def set_lines(codes: Any, h: Any, lines: Any) -> None:
    """Set lines to the sums of rows of ``h`` by code, some columns at a time.

    Arrays:
        codes: ``[R, C]`` uint8; h: ``[C, C]`` float32, C at least `STRIP`.
        lines: ``[R, K, C]`` float32; overwritten.
    """
    rows, entries, columns = lines.shape
    together, cells = np.int64(1), entries
    while entries > 1 and cells * entries <= _CELLS:
        together, cells = together + 1, cells * entries
    key = _joined(codes, together, entries, cells)
    count = cells * key.shape[0]
    length, run, place = _sorted(key, count)
    parts = _parts(together, entries)
    near, sums = _strips(columns), _strips(count)
    for left in range(0, columns, STRIP):
        base = min(left, columns - STRIP)  # some of them once more
        for j in range(columns):  # in a matrix they lie far apart, where a cache has little room
            copy_strip(h, j * columns + base, near, j * STRIP)
        first = 0
        for n in range(count):
            sum_strips(near, np.int64(0), place, first, length[n], sums, run[n] * STRIP)
            first += length[n]
        for r in range(rows):
            own = r // together * cells * STRIP
            for k in range(entries):
                at = ((r % together) * entries + k) * parts.shape[1]
                into = (r * entries + k) * columns + base
                sum_strips(sums, own, parts, at, np.int64(parts.shape[1]), lines, into)


@inner_kernel
def _joined(codes: Any, together: Any, entries: Any, cells: Any) -> Any:
    """Return the numbers of elements in ``together`` rows each, ``[N, C]``, other rows others."""
    rows, columns = codes.shape
    key = np.empty(((rows + together - 1) // together, columns), np.int32)
    for n in range(key.shape[0]):
        into, weight = key[n], np.int32(1)
        for j in range(columns):
            into[j] = n * cells
        for r in range(n * together, min(rows, n * together + together)):
            line = codes[r]
            for j in range(columns):
                into[j] += weight * line[j]
            weight *= np.int32(entries)
    return key


@inner_kernel
def _sorted(key: Any, count: Any) -> Any:
    """Return the columns that have each number, numbers of fewer columns first.

    Returns:
        how many columns, ``[count]``; of which number they are, ``[count]``; all columns, one
        number after the other.
    """
    columns = key.shape[1]
    size, begin = np.zeros(count, np.int32), np.zeros(columns + 2, np.int32)
    for n in range(key.shape[0]):
        line = key[n]
        for j in range(columns):
            size[line[j]] += 1
    for i in range(count):
        begin[size[i] + 1] += 1
    for n in range(columns):
        begin[n + 1] += begin[n]
    length, run = np.empty(count, np.int64), np.empty(count, np.int64)
    for i in range(count):
        at = begin[size[i]]
        begin[size[i]] += 1
        length[at], run[at] = size[i], i
    first = 0
    for at in range(count):
        size[run[at]] = first
        first += length[at]
    place = np.empty(key.size, np.int32)
    for n in range(key.shape[0]):
        line = key[n]
        for j in range(columns):
            place[size[line[j]]] = j
            size[line[j]] += 1
    return length, run, place


@inner_kernel
def _parts(together: Any, entries: Any) -> Any:
    """Return of which numbers each sum of one row is made, ``[together · K, ·]``."""
    each = entries ** (together - 1)
    parts = np.empty((together * entries, each), np.int32)
    weight = 1
    for i in range(together):
        for k in range(entries):
            for n in range(each):
                parts[i * entries + k, n] = (n // weight * entries + k) * weight + n % weight
        weight *= entries
    return parts


@inner_kernel
def _strips(count: Any) -> Any:
    """Return room for so many strips, each of which is loaded at once: from where 64 divides."""
    room = np.empty(count * STRIP + 16, np.float32)
    skip = (-room.ctypes.data % 64) // 4
    return room[skip : skip + count * STRIP]
