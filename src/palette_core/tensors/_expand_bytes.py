"""Entries of a table put together from their bytes, sixty-four at a time.

One instruction of AVX-512 VBMI looks 64 bytes up in a table of 128, so that the bytes of an entry
cost a look-up each, two and a choice where there are more entries. The instructions are named:
no sequence of plain operations is sure to become them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

_build: Any = cgutils  # has no types

COUNT = 64  # indices
_LANE = 16  # bytes; what interleaves them stays within lanes of so many
_BYTE, _HALF, _WORD, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES = ir.VectorType(_BYTE, COUNT)
_CHOOSE = "llvm.x86.avx512.vpermi2var.qi.512"
_SHIFT = "llvm.x86.avx512.pmultishift.qb.512"


def load_planes(builder: Any, entries: Any, n_bits: int, width: int) -> list[list[Any]]:
    """Return the bytes of a table, by their place in an entry, as vectors of 64 entries.

    Args:
        builder: of the function that is made.
        entries: address of the table; 16 entries of it are read at least.
        n_bits: of an index.
        width: bytes of an entry, 2 or 4.
    """
    at_once = min(max(1 << n_bits, _LANE), COUNT)
    word = _HALF if width == 2 else _WORD
    kind = ir.VectorType(word, at_once)
    words = builder.bitcast(entries, word.as_pointer())
    parts = []
    for start in range(0, max(1 << n_bits, at_once), COUNT):
        address = builder.bitcast(builder.gep(words, [_LONG(start)]), kind.as_pointer())
        parts.append(builder.load(address, align=width))
    return [[_plane(builder, part, kind, place) for part in parts] for place in range(width)]


def expand_bytes(
    builder: Any, source: Any, n_bits: int, planes: list[list[Any]], place: Any
) -> None:
    """Write the 64 entries that as many packed indices pick.

    Args:
        builder: of the function that is made.
        source: address of the indices, from the beginning of a byte on.
        n_bits: of an index.
        planes: of `load_planes`.
        place: address of the first entry to write.
    """
    width = len(planes)
    indices = _transposed(builder, _unpacked(builder, source, n_bits), width)
    found = _joined(builder, [_chosen(builder, indices, tables) for tables in planes])
    to = builder.bitcast(place, _BYTES.as_pointer())
    for j, some in enumerate(found):
        builder.store(some, builder.gep(to, [_LONG(j)]), align=width)


def _plane(builder: Any, words: Any, kind: Any, place: int) -> Any:
    """Return one byte of each word, 64 of them; those past the last word are anything."""
    shifted = builder.lshr(words, ir.Constant(kind, [8 * place] * kind.count))
    cut = builder.trunc(shifted, ir.VectorType(_BYTE, kind.count))
    return _picked(builder, cut, [min(i, kind.count - 1) for i in range(COUNT)])


def _unpacked(builder: Any, source: Any, n_bits: int) -> Any:
    """Return 64 indices, a byte each; eight lie in as many bytes as an index has bits."""
    raw = ir.VectorType(_BYTE, 8 * n_bits)
    packed = builder.load(builder.bitcast(source, raw.as_pointer()), align=1)
    if n_bits == 8:
        return packed
    places = [n_bits * group + min(i, n_bits - 1) for group in range(8) for i in range(8)]
    shifts = ir.Constant(_BYTES, [n_bits * i for i in range(8)] * 8)
    indices = _called(builder, _SHIFT, shifts, _picked(builder, packed, places))
    return builder.and_(indices, ir.Constant(_BYTES, [(1 << n_bits) - 1] * COUNT))


def _transposed(builder: Any, indices: Any, width: int) -> Any:
    """Return indices in the order that joining the bytes of entries undoes."""
    rows = COUNT // _LANE  # lanes; of each vector of entries too
    run = _LANE // width  # entries in a lane
    order = [
        (part * rows + lane) * run + i
        for lane in range(rows)
        for part in range(width)
        for i in range(run)
    ]
    return _picked(builder, indices, order)


def _chosen(builder: Any, indices: Any, tables: list[Any]) -> Any:
    """Return a byte for each index, out of one, two or four vectors of 64."""
    if len(tables) == 1:
        return _called(builder, _CHOOSE, tables[0], indices, tables[0])
    found = _called(builder, _CHOOSE, tables[0], indices, tables[1])
    if len(tables) == 2:
        return found
    upper = builder.icmp_signed("<", indices, ir.Constant(_BYTES, [0] * COUNT))
    return builder.select(upper, _called(builder, _CHOOSE, tables[2], indices, tables[3]), found)


def _joined(builder: Any, planes: list[Any]) -> list[Any]:
    """Return entries whose bytes are given, lane by lane: the first of all lanes come first."""
    if len(planes) == 1:
        return planes
    half = len(planes) // 2
    low, high = _joined(builder, planes[:half]), _joined(builder, planes[half:])
    return [
        _interleaved(builder, a, b, half, upper)
        for a, b in zip(low, high, strict=True)
        for upper in (False, True)
    ]


def _interleaved(builder: Any, a: Any, b: Any, size: int, upper: bool) -> Any:
    """Return units of so many bytes from each in turn, of the halves of their lanes."""
    first = _LANE // 2 if upper else 0
    places = [
        side * COUNT + lane + first + unit + i
        for lane in range(0, COUNT, _LANE)
        for unit in range(0, _LANE // 2, size)
        for side in range(2)
        for i in range(size)
    ]
    return _picked(builder, a, places, b)


def _picked(builder: Any, vector: Any, places: list[int], other: Any = None) -> Any:
    mask = ir.Constant(ir.VectorType(_WORD, len(places)), places)
    second = ir.Constant(vector.type, ir.Undefined) if other is None else other
    return builder.shuffle_vector(vector, second, mask)


def _called(builder: Any, name: str, *operands: Any) -> Any:
    kind = ir.FunctionType(_BYTES, [_BYTES] * len(operands))
    return builder.call(_build.get_or_insert_function(builder.module, kind, name), operands)
