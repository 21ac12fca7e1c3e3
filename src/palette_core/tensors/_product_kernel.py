"""Compiled decoding of packed weights, row by row, and products of their rows with inputs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from palette_core._common.kernels import inner_kernel, kernel
from palette_core.tensors._expand import STEP, dot, expand

_PIECE = 1024  # indices looked up before their products are added: they stay in the first cache


@functools.cache
def _piece(n_bits: int) -> Any:
    """Return what looks up any stretch of indices of so many bits."""
    mask = (1 << n_bits) - 1

    @inner_kernel
    def entries(
        packed: Any, start: Any, count: Any, table: Any, first: Any, out: Any, to: Any
    ) -> None:
        at = 0
        while at < count:
            bit = (start + at) * n_bits
            byte = bit >> 3
            if bit & 7 == 0 and at + STEP <= count and byte + STEP <= packed.shape[0]:
                readable = (packed.shape[0] - byte - STEP) // (2 * n_bits) + 1
                steps = min((count - at) // STEP, readable)
                expand(n_bits, packed, byte, steps, table, first, out, to + at)
                at += steps * STEP
                continue
            word = np.intp(packed[byte]) >> (bit & 7)
            if (bit & 7) + n_bits > 8:
                word |= np.intp(packed[byte + 1]) << (8 - (bit & 7))
            out[to + at] = table[first + (word & mask)]
            at += 1

    return entries


@inner_kernel
def _component(luts: Any, table: Any, entries: Any, dim: Any, d: Any, own: Any, at: Any) -> None:
    """Copy the d-th values of the entries of a table, to lie next to each other."""
    first = table * entries * dim + d
    for k in range(entries):
        own[at + k] = luts[first + k * dim]


@inner_kernel
def _spread(found: Any, first: Any, count: Any, inner: Any, values: Any, out: Any, at: Any) -> None:
    """Copy one value of each entry to where it lies, ``inner`` of them next to each other."""
    for j in range(count // inner):
        for h in range(inner):
            out[at + j * inner * values + h] = found[first + j * inner + h]


@inner_kernel
def _factor(factors: Any, r: Any, block: Any, sizes: Any) -> Any:
    """Return the scale of a row's block; 1 where there are none."""
    rows_per_factor, factors_per_row = sizes[7], sizes[8]
    if factors_per_row == 0:
        return np.float32(1.0)
    return factors[r // rows_per_factor * factors_per_row + block]


@inner_kernel
def _dot(x: Any, first: Any, values: Any, count: Any) -> Any:
    steps = count // STEP
    total: Any = dot(x, first, values, 0, steps)
    for j in range(steps * STEP, count):
        total += x[first + j] * values[j]
    return total


@functools.cache
def decode_rows(n_bits: int) -> Any:
    """Return the kernel that decodes rows of a weight of so many bits."""
    pick = _piece(n_bits)
    entries = 1 << n_bits
    padded = max(STEP, entries)

    @kernel
    def run(
        packed: Any, luts: Any, factors: Any, rows: Any, sizes: Any, out: Any, first: Any, last: Any
    ) -> None:
        """Decode ``rows[first:last]`` into the same rows of ``out``; see `products.Sizes`.

        ``luts`` and ``out`` are float32, or uint16: entries of half precision that nothing scales.
        """
        per_row, segments, dim, across, inner = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
        rows_per_table, tables_per_row = sizes[5], sizes[6]
        factors_per_row = sizes[8]
        count = per_row // segments
        values = 1 if across else dim
        own = np.zeros(padded * values, luts.dtype)
        found = np.empty(count * values, luts.dtype)
        have = -1
        for i in range(first, last):
            r = rows[i]
            index_row = r // dim if across else r
            for s in range(segments):
                table = r // rows_per_table * tables_per_row + s * tables_per_row // segments
                key = table * dim + r % dim if across else table
                if key != have:
                    have = key
                    for d in range(values):
                        part = r % dim if across else d
                        _component(luts, table, entries, dim, part, own, d * padded)
                start = index_row * per_row + s * count
                to = s * count * values
                at = i * per_row * values + to
                if values == 1:
                    pick(packed, start, count, own, 0, out, at)
                for d in range(values if values > 1 else 0):
                    pick(packed, start, count, own, d * padded, found, d * count)
                    _spread(found, d * count, count, inner, values, out, at + d * inner)
                if factors_per_row > 0:
                    factor = _factor(factors, r, s * factors_per_row // segments, sizes)
                    for j in range(count * values):
                        out[at + j] *= factor

    return run


@functools.cache
def multiply_rows(n_bits: int) -> Any:
    """Return the kernel that multiplies inputs with rows of a weight of so many bits."""
    pick = _piece(n_bits)
    entries = 1 << n_bits
    padded = max(STEP, entries)

    @kernel
    def run(
        packed: Any, luts: Any, factors: Any, x: Any, sizes: Any, out: Any, first: Any, last: Any
    ) -> None:
        """Write products with rows ``first`` to ``last`` of the weight; see `products.Sizes`.

        ``x`` is float32 ``[M * D * per_row]``, D values of an entry apart; ``out`` ``[M, rows]``.
        """
        per_row, segments, dim, across = sizes[0], sizes[1], sizes[2], sizes[3]
        rows_per_table, tables_per_row = sizes[5], sizes[6]
        factors_per_row = sizes[8]
        count = per_row // segments
        values = 1 if across else dim
        batch = out.shape[0]
        own = np.zeros(padded * values, np.float32)
        found = np.empty(_PIECE, np.float32)
        sums = np.empty(batch, np.float32)
        have = -1
        for r in range(first, last):
            index_row = r // dim if across else r
            sums[:] = 0.0
            for s in range(segments):
                table = r // rows_per_table * tables_per_row + s * tables_per_row // segments
                key = table * dim + r % dim if across else table
                if key != have:
                    have = key
                    for d in range(values):
                        part = r % dim if across else d
                        _component(luts, table, entries, dim, part, own, d * padded)
                factor = _factor(factors, r, s * factors_per_row // segments, sizes)
                for d in range(values):
                    for at in range(0, count, _PIECE):
                        some = min(_PIECE, count - at)
                        start = index_row * per_row + s * count + at
                        pick(packed, start, some, own, d * padded, found, 0)
                        for m in range(batch):
                            begin = (m * values + d) * per_row + s * count + at
                            sums[m] += factor * _dot(x, begin, found, some)
            for m in range(batch):
                out[m, r] = sums[m]

    return run
