"""Instructions of which `_depthwise_lanes` makes its loops.

Each vector has `LANES` values, of one channel each, so widths of registers change no result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from palette_core._common.vector_code import LANES, LONG, WORD, build

LINE = ir.VectorType(ir.FloatType(), LANES)
_SUMS = ir.VectorType(ir.DoubleType(), LANES)


def fetch(builder: Any, address: Any) -> None:
    """Have the cache of the second level fetch what lies at an address, if anything does."""
    there = builder.inttoptr(address, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [there.type, WORD, WORD, WORD])
    prefetch = build.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    reads, level, data = WORD(0), WORD(2), WORD(1)
    builder.call(prefetch, [there, reads, level, data])


def summed(
    builder: Any,
    count: int,
    walk: Any,
    step: Callable[..., list[Any]],
    beside: Any = None,
    chains: int = 1,
) -> list[Any]:
    """Return sums that ``step`` makes new ones of for each window.

    LLVM turns the variables that they are kept in into registers.

    Args:
        builder: of instructions.
        count: how many sums.
        walk: see `Walk`.
        step: takes how far a window is from the first one, and the sums; where there is
            ``beside``, also how far its outputs are.
        beside: how far from one sample, row and column the next one's outputs are.
        chains: in how many parts each sum is added up.
    """
    zero = ir.Constant(LINE, None)
    parts = [[build.alloca_once(builder, zero.type) for _ in range(count)] for _ in range(chains)]
    for total in itertools.chain.from_iterable(parts):
        builder.store(zero, total)
    counts, strides = _unpacked(builder, walk)
    every = [strides] if beside is None else [strides, build.unpack_tuple(builder, beside)]

    def take(starts: list[Any], column: Any, sums: list[Any]) -> None:
        at, *rest = _onwards(builder, starts, column, [stride[2] for stride in every])
        made = step(at, [builder.load(total) for total in sums], *rest)
        for total, new in zip(sums, made, strict=True):
            builder.store(new, total)

    def line(starts: list[Any]) -> None:
        whole = builder.sdiv(counts[2], LONG(chains))
        with build.for_range(builder, whole) as loop:
            first = builder.mul(loop.index, LONG(chains))
            for part, sums in enumerate(parts):
                take(starts, builder.add(first, LONG(part)), sums)
        if chains > 1:
            done = builder.mul(whole, LONG(chains))
            with build.for_range(builder, counts[2], start=done) as loop:
                take(starts, loop.index, parts[0])

    with build.for_range(builder, counts[0]) as samples:
        origin = [LONG(0) for _ in every]
        first = _onwards(builder, origin, samples.index, [stride[0] for stride in every])
        with build.for_range(builder, counts[1]) as rows:
            line(_onwards(builder, first, rows.index, [stride[1] for stride in every]))
    sums = [builder.load(total) for total in parts[0]]
    for more in parts[1:]:
        sums = [builder.fadd(s, builder.load(part)) for s, part in zip(sums, more, strict=True)]
    return sums


def _unpacked(builder: Any, walk: Any) -> tuple[list[Any], list[Any]]:
    """Return counts and distances."""
    numbers = build.unpack_tuple(builder, walk)
    return numbers[:3], numbers[3:]


def _onwards(builder: Any, starts: list[Any], count: Any, steps: list[Any]) -> list[Any]:
    """Return what lies ``count`` steps further than each of some starts."""
    pairs = zip(starts, steps, strict=True)
    return [builder.add(start, builder.mul(count, step)) for start, step in pairs]


def add_up(builder: Any, sums: list[Any], out: Any) -> None:
    """Add float32 sums to what lies in ``out``, vector after vector."""
    for i, total in enumerate(sums):
        spot = builder.bitcast(builder.gep(out, [LONG(i * LANES)]), _SUMS.as_pointer())
        more = builder.fpext(total, _SUMS)
        builder.store(builder.fadd(builder.load(spot, align=8), more), spot, align=8)


def transposed(builder: Any, lines: list[Any]) -> list[Any]:
    """Return as many vectors as each has lanes: lane i of each in vector i."""
    count = len(lines)
    half = count // 2
    low = [lane for i in range(half) for lane in (i, count + i)]
    high = [lane + half for lane in low]
    masks = [ir.Constant(ir.VectorType(WORD, count), lanes) for lanes in (low, high)]
    # Shuffled like cards: after as many times as halves can be made, each is where it belongs.
    for _ in range(count.bit_length() - 1):
        pairs = zip(lines[:half], lines[half:], strict=True)
        lines = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
    return lines
