"""Packed indices to entries of a table, sixteen at a time: the one step written for the processor.

A table of up to sixteen entries fits a register of AVX-512, and up to eight one of AVX2, whose
instructions permute 32-bit values by indices: what is written here as sixteen moves of single
elements becomes one such instruction. Larger tables, and other processors, load entry by entry.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic

from palette_core._common.kernels import has_feature
from palette_core.tensors._expand_bytes import COUNT, expand_bytes, load_planes

_build: Any = cgutils  # has no types

STEP = 16  # indices
_MOST_TABLES = 4  # registers that a table may take

_CHAINS = 4  # sums at once: an addition takes as many cycles
_REDUCE = "llvm.vector.reduce.fadd.v16f32"

_FLOAT, _BYTE, _HALF, _WORD, _LONG = ir.FloatType(), *(ir.IntType(n) for n in (8, 16, 32, 64))


def _expand(
    context: Any,
    bits: Any,
    packed: Any,
    byte: Any,
    steps: Any,
    table: Any,
    first: Any,
    out: Any,
    at: Any,
) -> Any:
    """Write ``steps`` times `STEP` entries, which as many packed indices pick.

    Args:
        context: of numba's typing.
        bits: of an index, 1 to 8; a constant.
        packed: uint8, indices as one little-endian stream of bits.
        byte: where the first one begins; 16 bytes from where the last step begins are read.
        steps: how many.
        table: float32 or uint16, ``max(16, 2 ** bits)`` entries from ``first`` on are read.
        first: where the table begins.
        out: of the table's dtype.
        at: where in ``out`` to begin.
    """
    if not isinstance(bits, types.IntegerLiteral):
        raise RequireLiteralValue("bits")
    index = types.intp
    signature = types.void(bits, packed, index, index, table, index, out, index)
    n_bits, width = bits.literal_value, table.dtype.bitwidth // 8

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        def pointer(array: int, offset: int) -> Any:
            data = target.make_array(signature.args[array])(target, builder, values[array]).data
            return builder.gep(data, [values[offset]])

        source, entries, to = pointer(1, 2), pointer(4, 5), pointer(6, 7)
        done = _LONG(0)
        if has_feature("avx512vbmi"):
            done = _expand_most(builder, source, n_bits, entries, to, values[3], width)
        lanes = _lanes() if width == 4 else 0
        permuted = lanes > 0 and 1 << n_bits <= _MOST_TABLES * lanes
        tables = _tables(builder, entries, n_bits, lanes) if permuted else []
        with _build.for_range(builder, values[3], start=done) as loop:
            some = builder.gep(source, [builder.mul(loop.index, _LONG(2 * n_bits))])
            place = builder.gep(to, [builder.mul(loop.index, _LONG(STEP))])
            if permuted:
                _permute_step(builder, _unpacked(builder, some, n_bits), tables, lanes, place)
            else:
                _load_step(builder, some, n_bits, entries, place, width)
        return target.get_dummy_value()

    return signature, generate


def _dot(context: Any, x: Any, first: Any, y: Any, at: Any, steps: Any) -> Any:
    """Return the sum of ``steps`` times `STEP` products, added up in lanes.

    Args:
        context: of numba's typing.
        x: float32.
        first: where in ``x`` to begin.
        y: float32.
        at: where in ``y`` to begin.
        steps: how many.
    """
    index = types.intp
    signature = types.float32(x, index, y, index, index)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        def pointer(array: int) -> Any:
            data = target.make_array(signature.args[array])(target, builder, values[array]).data
            return builder.gep(data, [values[array + 1]])

        left, right = pointer(0), pointer(2)
        zero = _constant(_FLOAT, [0] * STEP)
        sums = [_build.alloca_once_value(builder, zero) for _ in range(_CHAINS)]
        for total in sums:
            builder.store(zero, total)

        def add(step: Any, total: Any) -> None:
            at = builder.mul(step, _LONG(STEP))
            a, b = (
                _load_vector(builder, builder.gep(p, [at]), _FLOAT, STEP) for p in (left, right)
            )
            product = builder.fmul(a, b, flags=["contract"])
            builder.store(builder.fadd(builder.load(total), product, flags=["contract"]), total)

        whole = builder.sdiv(values[4], _LONG(_CHAINS))
        with _build.for_range(builder, whole) as loop:
            step = builder.mul(loop.index, _LONG(_CHAINS))
            for i, total in enumerate(sums):
                add(builder.add(step, _LONG(i)), total)
        with _build.for_range(builder, values[4], start=builder.mul(whole, _LONG(_CHAINS))) as loop:
            add(loop.index, sums[0])
        lanes = builder.load(sums[0])
        for total in sums[1:]:
            lanes = builder.fadd(lanes, builder.load(total))
        kind = ir.FunctionType(_FLOAT, [_FLOAT, lanes.type])
        reduce = _build.get_or_insert_function(builder.module, kind, _REDUCE)
        return builder.call(reduce, [_FLOAT(0.0), lanes], fastmath=["reassoc"])

    return signature, generate


expand: Any = intrinsic(_expand)
dot: Any = intrinsic(_dot)


def _expand_most(
    builder: Any, source: Any, n_bits: int, entries: Any, to: Any, steps: Any, width: int
) -> Any:
    """Write entries by their bytes, some steps at once; return how many steps are done."""
    planes = load_planes(builder, entries, n_bits, width)
    at_once = COUNT // STEP
    rounds = builder.sdiv(steps, _LONG(at_once))
    with _build.for_range(builder, rounds) as loop:
        some = builder.gep(source, [builder.mul(loop.index, _LONG(8 * n_bits))])
        place = builder.gep(to, [builder.mul(loop.index, _LONG(COUNT))])
        expand_bytes(builder, some, n_bits, planes, place)
    return builder.mul(rounds, _LONG(at_once))


def _lanes() -> int:
    """Return how many 32-bit values one instruction permutes, here."""
    return 16 if has_feature("avx512f") else 8 if has_feature("avx2") else 0


def _constant(kind: Any, values: list[int]) -> Any:
    return ir.Constant(ir.VectorType(kind, len(values)), values)


def _load_vector(builder: Any, source: Any, kind: Any, count: int) -> Any:
    return builder.load(builder.bitcast(source, ir.VectorType(kind, count).as_pointer()), align=1)


def _tables(builder: Any, entries: Any, n_bits: int, lanes: int) -> list[Any]:
    starts = range(0, max(lanes, 1 << n_bits), lanes)
    return [_load_vector(builder, builder.gep(entries, [_LONG(s)]), _FLOAT, lanes) for s in starts]


def _unpacked(builder: Any, source: Any, n_bits: int) -> Any:
    """Return sixteen indices as a vector of words; each lies within two neighbouring bytes."""
    raw = _load_vector(builder, source, _BYTE, STEP)
    places = [i * n_bits >> 3 for i in range(STEP)]
    two = [byte for place in places for byte in (place, min(place + 1, STEP - 1))]
    pairs = builder.shuffle_vector(raw, ir.Constant(raw.type, ir.Undefined), _constant(_WORD, two))
    pairs = builder.bitcast(pairs, ir.VectorType(_HALF, STEP))
    shifted = builder.lshr(pairs, _constant(_HALF, [i * n_bits & 7 for i in range(STEP)]))
    cut = builder.and_(shifted, _constant(_HALF, [(1 << n_bits) - 1] * STEP))
    return builder.zext(cut, ir.VectorType(_WORD, STEP))


def _permute_step(builder: Any, indices: Any, tables: list[Any], lanes: int, place: Any) -> None:
    for part in range(0, STEP, lanes):
        chosen = _constant(_WORD, list(range(part, part + lanes)))
        some = builder.shuffle_vector(indices, ir.Constant(indices.type, ir.Undefined), chosen)
        low = builder.and_(some, _constant(_WORD, [lanes - 1] * lanes))
        found = [_permuted(builder, table, low) for table in tables]
        bit = lanes
        while len(found) > 1:
            flag = builder.and_(some, _constant(_WORD, [bit] * lanes))
            upper = builder.icmp_unsigned("!=", flag, _constant(_WORD, [0] * lanes))
            found = [
                builder.select(upper, b, a) for a, b in zip(found[::2], found[1::2], strict=True)
            ]
            bit *= 2
        to = builder.bitcast(builder.gep(place, [_LONG(part)]), found[0].type.as_pointer())
        builder.store(found[0], to, align=4)


def _permuted(builder: Any, table: Any, indices: Any) -> Any:
    found = ir.Constant(table.type, ir.Undefined)
    for lane in range(table.type.count):
        at = builder.extract_element(indices, _WORD(lane))
        found = builder.insert_element(found, builder.extract_element(table, at), _WORD(lane))
    return found


def _load_step(
    builder: Any, source: Any, n_bits: int, entries: Any, place: Any, width: int
) -> None:
    """Look up one index after the other, eight from each word of as many bytes as bits.

    Atomic accesses are plain moves, and not put together to vectors, which takes twice as long.
    """
    kind = _WORD if width == 4 else _HALF
    words = builder.bitcast(entries, kind.as_pointer())
    out = builder.bitcast(place, kind.as_pointer())
    for half in range(2):
        start = builder.gep(source, [_LONG(half * n_bits)])
        word = builder.load(builder.bitcast(start, _LONG.as_pointer()), align=1)
        for i in range(8):
            index = builder.lshr(word, _LONG(i * n_bits))
            index = builder.and_(index, _LONG((1 << n_bits) - 1))
            value = builder.load_atomic(builder.gep(words, [index]), "monotonic", width)
            to = builder.gep(out, [_LONG(half * 8 + i)])
            builder.store_atomic(value, to, "monotonic", width)
