"""Loops written for the processor: sums that stay in its registers until all is added up.

What a compiler makes of plain loops loads and stores every sum once for a few products. Each sum is
of one element, in the order of what is added, so that widths of registers change no result.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from palette_core._common.vector_code import (
    LANES,
    LONG,
    REGISTER_BYTES,
    WIDE,
    begin_of,
    build,
    data_of,
    plus,
    spread,
)

ROWS = 8 if WIDE else 4  # of a tile of products
_ACROSS = 2  # registers of a row of a tile
TILE_BYTES = _ACROSS * REGISTER_BYTES  # of a row of a tile
LINE = 64  # float32 values of lines that are added up at once
STRIP = 32  # likewise, where they have been put together from lines far apart


def _add_tile(
    context: Any,
    f: Any,
    f_at: Any,
    f_step: Any,
    m: Any,
    m_at: Any,
    m_step: Any,
    depth: Any,
    out: Any,
    out_at: Any,
    out_step: Any,
) -> Any:
    """Add f · m to a tile of `ROWS` rows and `TILE_BYTES` of ``out``.

    Args:
        context: of numba's typing.
        f: ``[ROWS, depth]`` from element ``f_at`` on, a row every ``f_step`` elements.
        f_at: where it begins.
        f_step: from one row to the next.
        m: ``[depth, columns]``, likewise.
        m_at: where it begins.
        m_step: from one row to the next.
        depth: how many products each sum is of.
        out: ``[ROWS, columns]``, likewise.
        out_at: where it begins.
        out_step: from one row to the next.
    """
    index = types.intp
    places = (index, index)
    signature = types.void(f, *places, m, *places, index, out, *places)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        def lines(array: int, count: int) -> list[Any]:
            data = data_of(target, builder, signature, values, array)
            first = builder.gep(data, [values[array + 1]])
            step = values[array + 2]
            return [builder.gep(first, [builder.mul(step, LONG(r))]) for r in range(count)]

        size = target.get_abi_sizeof(target.get_value_type(out.dtype))
        lanes = REGISTER_BYTES // size
        factors, (matrix,), rows = lines(0, ROWS), lines(3, 1), lines(7, ROWS)
        spots = [spots_of(builder, row, lanes, _ACROSS) for row in rows]

        def step(k: Any, sums: list[Any]) -> list[Any]:
            line = builder.gep(matrix, [builder.mul(k, values[5])])
            parts = [
                builder.load(spot, align=size) for spot in spots_of(builder, line, lanes, _ACROSS)
            ]
            made = []
            for r, row in enumerate(factors):
                factor = spread(builder, builder.load(builder.gep(row, [k])), lanes)
                for c, part in enumerate(parts):
                    made.append(plus(builder, sums[r * _ACROSS + c], factor, part))
            return made

        _accumulate(builder, values[6], [s for row in spots for s in row], size, step)
        return target.get_dummy_value()

    return signature, generate


def _add_lines(
    context: Any,
    m: Any,
    m_at: Any,
    m_step: Any,
    picked: Any,
    scale: Any,
    first: Any,
    count: Any,
    out: Any,
    out_at: Any,
) -> Any:
    """Add some lines of ``m``, times their scales, to `LINE` elements of ``out``.

    Args:
        context: of numba's typing.
        m: float32, a line every ``m_step`` elements, of which those from ``m_at`` on are added.
        m_at: where line 0 begins.
        m_step: from one line to the next.
        picked: int32, numbers of the lines.
        scale: float32, what to multiply them by.
        first: of ``picked`` and of ``scale``.
        count: how many.
        out: float32.
        out_at: where in it to begin.
    """
    index = types.intp
    signature = types.void(m, index, index, picked, scale, index, index, out, index)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        def pointer(array: int, offset: Any) -> Any:
            data = data_of(target, builder, signature, values, array)
            return builder.gep(data, [offset])

        matrix, numbers = pointer(0, values[1]), pointer(3, values[5])
        scales, into = pointer(4, values[5]), pointer(7, values[8])

        def step(k: Any, sums: list[Any]) -> list[Any]:
            number = builder.zext(builder.load(builder.gep(numbers, [k])), LONG)
            line = builder.gep(matrix, [builder.mul(number, values[2])])
            factor = spread(builder, builder.load(builder.gep(scales, [k])), LANES)
            spots = spots_of(builder, line, LANES, len(sums))
            return [
                plus(builder, total, factor, builder.load(spot, align=4))
                for total, spot in zip(sums, spots, strict=True)
            ]

        _accumulate(builder, values[6], spots_of(builder, into, LANES, LINE // LANES), 4, step)
        return target.get_dummy_value()

    return signature, generate


def _sum_strips(
    context: Any,
    m: Any,
    m_at: Any,
    picked: Any,
    first: Any,
    count: Any,
    out: Any,
    out_at: Any,
) -> Any:
    """Set a strip of `STRIP` elements to the sum of some strips that lie next to each other.

    Args:
        context: of numba's typing.
        m: float32, where all strips lie.
        m_at: where strip 0 begins, at a multiple of a register.
        picked: int32, numbers of the strips.
        first: of ``picked``.
        count: how many.
        out: float32.
        out_at: where in it to begin.
    """
    index = types.intp
    signature = types.void(m, index, picked, index, index, out, index)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        def pointer(array: int, offset: Any) -> Any:
            return builder.gep(data_of(target, builder, signature, values, array), [offset])

        matrix, numbers = pointer(0, values[1]), pointer(2, values[3])
        nothing = ir.Constant(ir.VectorType(ir.FloatType(), LANES), [0.0] * LANES)
        sums = [build.alloca_once_value(builder, nothing) for _ in range(STRIP // LANES)]
        with build.for_range(builder, values[4]) as loop:
            number = builder.zext(builder.load(builder.gep(numbers, [loop.index])), LONG)
            strip = builder.gep(matrix, [builder.mul(number, LONG(STRIP))])
            for total, spot in zip(sums, spots_of(builder, strip, LANES, len(sums)), strict=True):
                part = builder.load(spot, align=REGISTER_BYTES)
                builder.store(builder.fadd(builder.load(total), part), total)
        into = pointer(5, values[6])
        for total, spot in zip(sums, spots_of(builder, into, LANES, len(sums)), strict=True):
            builder.store(builder.load(total), spot, align=4)
        return target.get_dummy_value()

    return signature, generate


def _copy_strip(context: Any, m: Any, m_at: Any, out: Any, out_at: Any) -> Any:
    """Copy `STRIP` elements of one float32 array, from ``m_at`` on, to another, likewise."""
    index = types.intp
    signature = types.void(m, index, out, index)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, into = (begin_of(target, builder, signature, values, at) for at in (0, 2))
        parts = [
            builder.load(spot, align=4) for spot in spots_of(builder, source, LANES, STRIP // LANES)
        ]
        for part, spot in zip(parts, spots_of(builder, into, LANES, len(parts)), strict=True):
            builder.store(part, spot, align=4)
        return target.get_dummy_value()

    return signature, generate


add_tile: Any = intrinsic(_add_tile)
add_lines: Any = intrinsic(_add_lines)
sum_strips: Any = intrinsic(_sum_strips)
copy_strip: Any = intrinsic(_copy_strip)


def spots_of(builder: Any, start: Any, lanes: int, count: int) -> list[Any]:
    """Return where ``count`` vectors next to each other lie."""
    kind = ir.VectorType(start.type.pointee, lanes).as_pointer()
    return [builder.bitcast(builder.gep(start, [LONG(c * lanes)]), kind) for c in range(count)]


def _accumulate(builder: Any, count: Any, spots: list[Any], align: int, step: Any) -> None:
    """Load sums, let ``step`` make new ones of them ``count`` times, and store them.

    LLVM turns the variables between the two into registers.
    """
    sums = [build.alloca_once_value(builder, builder.load(spot, align=align)) for spot in spots]
    with build.for_range(builder, count) as loop:
        made = step(loop.index, [builder.load(total) for total in sums])
        for total, new in zip(sums, made, strict=True):
            builder.store(new, total)
    for total, spot in zip(sums, spots, strict=True):
        builder.store(builder.load(total), spot, align=align)
