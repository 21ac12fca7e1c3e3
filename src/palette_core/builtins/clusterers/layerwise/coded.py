"""Searches of rows of codes, and of values by their codes: some registers at a time.

Where values differ from code to code, a compiler's loops load each by itself, and leave as soon as
one is found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from palette_core._common.kernels import inner_kernel
from palette_core._common.vector_code import LANES, LONG, WORD, build, data_of, spread
from palette_core.builtins.clusterers.layerwise.products import TILED, ZERO
from palette_core.builtins.clusterers.layerwise.vectors import spots_of

FOUR = 4  # codes, or registers, that are looked at together
_BLOCK = FOUR * LANES
_COMPARED = 16  # values that codes are compared with, at most: more are sooner loaded
_LOOK = 64  # codes that are compared together


def _sum_coded(
    context: Any, m: Any, m_at: Any, codes: Any, first: Any, count: Any, out: Any
) -> Any:
    """Add what a line holds where there is one of `FOUR` codes to as many sums.

    Args:
        context: of numba's typing.
        m: float32, the line.
        m_at: where in it to begin.
        codes: uint8, one for each element of the line.
        first: of the codes that count.
        count: how many elements, a multiple of `LANES`.
        out: float32, by code; those from ``first`` on are added to.
    """
    index = types.intp
    signature = types.void(m, index, codes, index, index, out)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        def pointer(array: int, *offset: Any) -> Any:
            return builder.gep(data_of(target, builder, signature, values, array), list(offset))

        line, own, into = pointer(0, values[1]), pointer(2, LONG(0)), pointer(5, values[3])
        nothing = ir.Constant(ir.VectorType(ir.FloatType(), LANES), [0.0] * LANES)
        sums = [build.alloca_once_value(builder, nothing) for _ in range(FOUR)]
        low = builder.trunc(values[3], ir.IntType(8))
        likes = [
            spread(builder, builder.add(low, ir.Constant(low.type, k)), LANES) for k in range(FOUR)
        ]
        with build.for_range(builder, builder.udiv(values[4], LONG(LANES))) as loop:
            at = builder.mul(loop.index, LONG(LANES))
            (spot,) = spots_of(builder, builder.gep(line, [at]), LANES, 1)
            part = builder.load(spot, align=4)
            (spot,) = spots_of(builder, builder.gep(own, [at]), LANES, 1)
            code = builder.load(spot, align=1)
            for total, like in zip(sums, likes, strict=True):
                before = builder.load(total)
                here = builder.icmp_unsigned("==", code, like)
                builder.store(builder.select(here, builder.fadd(before, part), before), total)
        for k, total in enumerate(sums):
            spot = builder.gep(into, [LONG(k)])
            made = _sum_of(builder, builder.load(total))
            builder.store(builder.fadd(builder.load(spot), made), spot)
        return target.get_dummy_value()

    return signature, generate


def _look_up(context: Any, values: Any, count: Any, codes: Any, size: Any, out: Any) -> Any:
    """Set elements to the values of their codes: few values are compared sooner than loaded.

    Args:
        context: of numba's typing.
        values: float32, by code.
        count: how many.
        codes: uint8.
        size: how many elements, a multiple of `_BLOCK`.
        out: float32.
    """
    signature = types.void(values, types.intp, codes, types.intp, out)

    def generate(target: Any, builder: Any, signature: Any, given: Any) -> Any:
        table, own, into = (data_of(target, builder, signature, given, at) for at in (0, 2, 4))
        nothing = ir.Constant(ir.VectorType(ir.FloatType(), LANES), [0.0] * LANES)
        with build.for_range(builder, builder.udiv(given[3], LONG(_BLOCK))) as loop:
            at = builder.mul(loop.index, LONG(_BLOCK))
            spots = spots_of(builder, builder.gep(own, [at]), LANES, FOUR)
            numbers = [builder.load(spot, align=1) for spot in spots]
            found = [build.alloca_once_value(builder, nothing) for _ in numbers]
            with build.for_range(builder, given[1]) as inner:
                value = spread(builder, builder.load(builder.gep(table, [inner.index])), LANES)
                like = spread(builder, builder.trunc(inner.index, ir.IntType(8)), LANES)
                for number, kept in zip(numbers, found, strict=True):
                    here = builder.icmp_unsigned("==", number, like)
                    builder.store(builder.select(here, value, builder.load(kept)), kept)
            spots = spots_of(builder, builder.gep(into, [at]), LANES, FOUR)
            for kept, spot in zip(found, spots, strict=True):
                builder.store(builder.load(kept), spot, align=4)
        return target.get_dummy_value()

    return signature, generate


def _count_between(context: Any, values: Any, least: Any, most: Any, first: Any) -> Any:
    """Return how many of `_BLOCK` float32 values are between their bounds before one is not.

    Args:
        context: of numba's typing.
        values: of which those from ``first`` on are looked at.
        least: lower bounds.
        most: upper bounds.
        first: where to begin.
    """
    signature = types.int64(values, least, most, types.intp)

    def generate(target: Any, builder: Any, signature: Any, given: Any) -> Any:
        def parts(array: int) -> list[Any]:
            start = builder.gep(data_of(target, builder, signature, given, array), [given[3]])
            spots = spots_of(builder, start, LANES, FOUR)
            return [builder.load(spot, align=4) for spot in spots]

        out: Any = ir.Constant(ir.IntType(_BLOCK), 0)  # a bit for each that is not
        for at, (value, low, high) in enumerate(zip(parts(0), parts(1), parts(2), strict=True)):
            held = builder.and_(
                builder.fcmp_ordered("<", low, value), builder.fcmp_ordered("<", value, high)
            )
            bits = builder.zext(builder.bitcast(builder.not_(held), ir.IntType(LANES)), out.type)
            out = builder.or_(out, builder.shl(bits, ir.Constant(out.type, at * LANES)))
        count = builder.cttz(out, ir.Constant(ir.IntType(1), 0))
        return count if LONG.width == _BLOCK else builder.zext(count, LONG)

    return signature, generate


def _sum_of(builder: Any, vector: Any) -> Any:
    """Return the sum of the lanes of a vector: halves are added up until one lane is left."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        low, high = (
            builder.shuffle_vector(
                vector,
                vector,
                ir.Constant(ir.VectorType(WORD, lanes), [at + i for i in range(lanes)]),
            )
            for at in (0, lanes)
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, WORD(0))


_sum_lanes: Any = intrinsic(_sum_coded)
_compare: Any = intrinsic(_look_up)
_count: Any = intrinsic(_count_between)


@inner_kernel
def decode(values: Any, codes: Any, out: Any) -> None:
    """Set each element of a row to the value of its code."""
    whole = 0
    if TILED and len(values) <= _COMPARED:
        whole = len(codes) // _BLOCK * _BLOCK
        _compare(values, len(values), codes, np.int64(whole), out)
    for j in range(whole, len(codes)):
        out[j] = values[codes[j]]


@inner_kernel
def sum_by_code(values: Any, codes: Any, first: Any, line: Any) -> None:
    """Set ``line`` ``[K + FOUR]`` to the sums of values by code.

    Those of codes before ``first``, and the last `FOUR`, mean nothing.
    """
    line[:] = 0.0
    whole = 0
    if TILED:
        whole = len(values) // LANES * LANES
        for code in range(first // FOUR * FOUR, len(line) - FOUR, FOUR):
            _sum_lanes(values, ZERO, codes, np.int64(code), np.int64(whole), line)
    for j in range(whole, len(values)):
        line[codes[j]] += values[j]


@inner_kernel
def first_outside(row: Any, bounds: Any, j: Any) -> Any:
    """Return the first element from ``j`` on that is not within its bounds ``[2, C]``."""
    least, most = bounds[0], bounds[1]
    columns = row.shape[0]
    if TILED:
        while j + _BLOCK <= columns:
            count = _count(row, least, most, j)
            j += count
            if count < _BLOCK:
                return j
    while j < columns and least[j] < row[j] < most[j]:
        j += 1
    return j


@inner_kernel
def differing(a: Any, b: Any, found: Any) -> Any:
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
