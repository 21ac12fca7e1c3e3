"""Loops over planes of `LANES` channels side by side, written for the processor.

A vector holds one place of all these channels: nothing has to be shifted, however narrow a plane
is. Sums stay in registers, where what a compiler makes of plain loops loads and stores each of
them for a few products.
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic

from palette_core._common.vector_code import (
    LANES,
    LONG,
    WIDE,
    begin_of,
    build,
    data_of,
    load,
    plus,
    store,
)
from palette_core.builtins.operations._depthwise_code import LINE, add_up, fetch, summed, transposed

TILE = 5 if WIDE else 3  # elements that are multiplied with as many others at once, at most
PLACES = 9  # elements of a window that are multiplied with an output at once
AHEAD = 7  # outputs that are made at once
CHAINS = 4  # sums that are added to at once, where there are so few: it takes as many cycles
TURNED = 8  # places, and channels, that change sides at once

_types: Any = types
_INDEX = _types.intp

Walk = tuple[int, int, int, int, int, int]
"""How many samples, rows and columns, and how far each is from the next."""

Ahead = tuple[int, int, int, int]
"""Two addresses of what is needed next, and how far the line after it is from either."""

_WALK, _AHEAD = _types.UniTuple(_INDEX, 6), _types.UniTuple(_INDEX, 4)


def _add_tile(
    context: Any,
    size: Any,
    x: Any,
    p: Any,
    y: Any,
    q: Any,
    apart: Any,
    walk: Any,
    ahead: Any,
    out: Any,
    at: Any,
) -> Any:
    """Add products of elements of windows of x and of y to ``[size, size, LANES]`` of ``out``.

    They are summed in float32 over all windows. For each of these the cache fetches two lines of
    what is needed next, which takes about as long.

    Args:
        context: of numba's typing.
        size: how many elements of either; a constant.
        x: float32.
        p: where the first element of the first window lies in ``x``.
        y: float32.
        q: where it lies in ``y``.
        apart: from one element to the next.
        walk: over the windows, see `Walk`.
        ahead: what to fetch, see `Ahead`.
        out: float64.
        at: where in it to begin.
    """
    if not isinstance(size, types.IntegerLiteral):
        raise RequireLiteralValue("size")
    signature = types.void(size, x, _INDEX, y, _INDEX, _INDEX, _WALK, _AHEAD, out, _INDEX)
    each = range(size.literal_value)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        def elements(array: int) -> list[Any]:
            first = begin_of(target, builder, signature, values, array)
            apart = [builder.mul(values[5], LONG(i)) for i in each]
            return [builder.gep(first, [distance]) for distance in apart]

        lefts, rights = elements(1), elements(3)
        first, second, *steps = build.unpack_tuple(builder, values[7])
        lines = [build.alloca_once_value(builder, address) for address in (first, second)]

        def step(at: Any, sums: list[Any]) -> list[Any]:
            ours = [load(builder, builder.gep(left, [at])) for left in lefts]
            others = [load(builder, builder.gep(right, [at])) for right in rights]
            pairs = itertools.product(ours, others)
            for line, further in zip(lines, steps, strict=True):
                address = builder.load(line)
                fetch(builder, address)
                builder.store(builder.add(address, further), line)
            return [plus(builder, s, *pair) for s, pair in zip(sums, pairs, strict=True)]

        chains = max(1, CHAINS // len(each) ** 2)
        sums = summed(builder, len(each) ** 2, values[6], step, chains=chains)
        add_up(builder, sums, begin_of(target, builder, signature, values, 8))
        return target.get_dummy_value()

    return signature, generate


def _add_places(
    context: Any,
    y: Any,
    p: Any,
    beside: Any,
    x: Any,
    q: Any,
    places: Any,
    first: Any,
    walk: Any,
    out: Any,
    at: Any,
) -> Any:
    """Add products of outputs with `PLACES` elements to ``[PLACES, LANES]`` of ``out``.

    They are summed in float32 over all windows.

    Args:
        context: of numba's typing.
        y: float32, as many vectors as there are windows.
        p: where it begins.
        beside: how far from the first sample, row and column of outputs the next one is.
        x: float32.
        q: where the first window begins in ``x``.
        places: int64, how far from there elements lie.
        first: number of the first of them.
        walk: over the windows, see `Walk`.
        out: float64.
        at: where in it to begin.
    """
    three = _types.UniTuple(_INDEX, 3)
    signature = types.void(y, _INDEX, three, x, _INDEX, places, _INDEX, _WALK, out, _INDEX)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        outputs, begin, offsets, into = (
            begin_of(target, builder, signature, values, array) for array in (0, 3, 5, 8)
        )
        distances = [builder.load(builder.gep(offsets, [LONG(j)])) for j in range(PLACES)]
        elements = [builder.gep(begin, [distance]) for distance in distances]

        def step(at: Any, sums: list[Any], output: Any) -> list[Any]:
            line = load(builder, builder.gep(outputs, [output]))
            found = [load(builder, builder.gep(element, [at])) for element in elements]
            return [plus(builder, s, line, x) for s, x in zip(sums, found, strict=True)]

        sums = summed(builder, PLACES, values[7], step, values[2])
        add_up(builder, sums, into)
        return target.get_dummy_value()

    return signature, generate


def _convolve(
    context: Any,
    x: Any,
    at: Any,
    step: Any,
    places: Any,
    weight: Any,
    first: Any,
    count: Any,
    out: Any,
    into: Any,
    rounds: Any,
) -> Any:
    """Write what a row of W makes of ``rounds`` times `AHEAD` windows next to each other.

    Args:
        context: of numba's typing.
        x: float32.
        at: where the first window begins in it.
        step: from one window to the next.
        places: int64, how far from there elements lie.
        weight: float32, a vector for each element.
        first: where it begins.
        count: how many elements there are.
        out: float32, a vector for each window.
        into: where in it to begin.
        rounds: see above.
    """
    index = _INDEX
    signature = types.void(x, index, index, places, weight, index, index, out, index, index)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, factors, to = (
            begin_of(target, builder, signature, values, array) for array in (0, 4, 7)
        )
        offsets = data_of(target, builder, signature, values, 3)
        sums = [build.alloca_once(builder, LINE) for _ in range(AHEAD)]
        with build.for_range(builder, values[9]) as block:
            done = builder.mul(block.index, LONG(AHEAD))
            windows = [
                builder.gep(source, [builder.mul(builder.add(done, LONG(b)), values[2])])
                for b in range(AHEAD)
            ]
            for total in sums:
                builder.store(ir.Constant(total.type.pointee, None), total)
            with build.for_range(builder, values[6]) as loop:
                offset = builder.load(builder.gep(offsets, [loop.index]))
                place = builder.mul(loop.index, LONG(LANES))
                factor = load(builder, builder.gep(factors, [place]))
                for window, total in zip(windows, sums, strict=True):
                    value = load(builder, builder.gep(window, [offset]))
                    builder.store(plus(builder, builder.load(total), factor, value), total)
            for b, total in enumerate(sums):
                place = builder.mul(builder.add(done, LONG(b)), LONG(LANES))
                store(builder, builder.load(total), builder.gep(to, [place]))
        return target.get_dummy_value()

    return signature, generate


def _copy(
    context: Any, values: Any, begin: Any, apart: Any, out: Any, at: Any, step: Any, count: Any
) -> Any:
    """Copy vectors, every ``apart`` values, to every ``step`` values of ``out``.

    Args:
        context: of numba's typing.
        values: float32.
        begin: where the first one lies.
        apart: from one to the next.
        out: float32, in which they do not overlap.
        at: where to begin.
        step: from one to the next.
        count: how many.
    """
    signature = types.void(values, _INDEX, _INDEX, out, *[_INDEX] * 3)

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, to = (begin_of(target, builder, signature, arguments, array) for array in (0, 3))
        with build.for_range(builder, arguments[6]) as loop:
            here, there = (builder.mul(loop.index, arguments[n]) for n in (2, 5))
            line = load(builder, builder.gep(source, [here]))
            store(builder, line, builder.gep(to, [there]))
        return target.get_dummy_value()

    return signature, generate


def _turn(context: Any, values: Any, begin: Any, apart: Any, out: Any, at: Any, rounds: Any) -> Any:
    """Write ``rounds`` times `TURNED` neighbours of as many channels, a vector for each place.

    Args:
        context: of numba's typing.
        values: float32.
        begin: where the first one lies.
        apart: from one channel to the next.
        out: float32.
        at: where to begin; from one place to the next it is `LANES`.
        rounds: see above.
    """
    signature = types.void(values, _INDEX, _INDEX, out, _INDEX, _INDEX)

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, to = (begin_of(target, builder, signature, arguments, array) for array in (0, 3))
        with build.for_range(builder, arguments[5]) as loop:
            done = builder.mul(loop.index, LONG(TURNED))
            lines = []
            for c in range(TURNED):
                place = builder.add(done, builder.mul(arguments[2], LONG(c)))
                lines.append(load(builder, builder.gep(source, [place]), TURNED))
            for t, line in enumerate(transposed(builder, lines)):
                place = builder.mul(builder.add(done, LONG(t)), LONG(LANES))
                store(builder, line, builder.gep(to, [place]))
        return target.get_dummy_value()

    return signature, generate


add_tile: Any = intrinsic(_add_tile)
add_places: Any = intrinsic(_add_places)
convolve: Any = intrinsic(_convolve)
copy: Any = intrinsic(_copy)
turn: Any = intrinsic(_turn)
