"""Decode the palettized weights of a saved file, by numpy, without running it.

Written against the file format alone: nothing here shares code with the decoding of
palette_core, so that each can be judged by the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from coreai_backend import ir
from palette_core.errors import BackendError

Array = npt.NDArray[Any]

_DTYPES: dict[str, Any] = {
    "f32": np.float32,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f8E4M3FN": ml_dtypes.float8_e4m3fn,
    "f8E5M2": ml_dtypes.float8_e5m2,
    "si8": np.int8,
    "ui8": np.uint8,
    "si16": np.int16,
}


@dataclass(frozen=True)
class StoredWeight:
    """A palettized weight as it lies in a file.

    Attributes:
        name: qualified name of the first module that owns it, and of its parameter.
        n_bits: bits per stored index.
        indices: uint8, unpacked; the weight's shape with ``axis`` divided by the vector length.
        lut: ``[*grid, 2 ** n_bits, vector length]`` in the dtype that is stored.
        axis: the axis along which the values of an entry lie.
        dense: the weight, in its dtype (``ml_dtypes.bfloat16`` for that one).
    """

    name: str
    n_bits: int
    indices: Array
    lut: Array
    axis: int
    dense: Array


_Named = tuple[list[str], StoredWeight]


def read_weights(path: str | Path) -> dict[str, Array]:
    """Return the dense values of every palettized weight of a saved ``.aimodel``, by name.

    A tied weight is stored, and comes, once: under the name of its first owner. Core AI stores
    equal constants once, under one of their names; weights that are equal in every value come
    once for that reason.

    Raises:
        BackendError: no such file, or not one that the ``coreai`` backend has written.
    """
    found: dict[str, Array] = {}
    for weight in stored_weights(path):
        # Only where parts of it are shared with two other weights.
        shared = weight.name in found and not _same(found[weight.name], weight.dense)
        found[f"{weight.name} ({len(found)})" if shared else weight.name] = weight.dense
    return found


def stored_weights(path: str | Path) -> list[StoredWeight]:
    """Return the palettized weights of a saved ``.aimodel`` as they are stored.

    Raises:
        BackendError: as `read_weights` does.
    """
    try:
        program = ir.Program(Path(path))
    # The bindings raise RuntimeError and its kin for files they cannot read.
    except Exception as error:
        raise BackendError(f"{path} cannot be read as an .aimodel: {error}") from error
    found = [_stored(program, op) for op in program.operations("coreai.lut_to_dense")]
    return [replace(weight, name=_name(names, weight, found)) for names, weight in found]


def _name(names: list[str], weight: StoredWeight, among: list[_Named]) -> str:
    """Return the first name of its parts that no weight of other values has there."""
    for part, name in enumerate(names):
        others = (w for n, w in among if part < len(n) and n[part] == name)
        if all(_same(other.dense, weight.dense) for other in others):
            return name
    return names[0]


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _stored(program: ir.Program, op: ir.Operation) -> _Named:
    """Return a weight that has no name yet, and the names of its parts, indices first."""
    given, lut, axis = (_constant(program, value) for value in op.operands)
    name, kind, shape, packed = given
    n_bits = int(kind.removeprefix("ui"))
    indices = _unpacked(packed, n_bits, math.prod(shape)).reshape(shape)
    table, along = _array(lut), int(_array(axis).reshape(-1)[0])
    dense, scales = _scaled(program, op.results[0], looked_up(indices, table, along))
    names = [part.rpartition(".")[0] for part in (name, lut[0], *scales)]
    return names, StoredWeight("", n_bits, indices, table, along, dense)


def looked_up(indices: Array, lut: Array, axis: int) -> Array:
    """Look indices up in tables ``[*grid, K, V]``, V values of an entry along ``axis``."""
    grid = lut.shape[:-2]
    blocks = np.ix_(*(np.arange(s) // (s // g) for s, g in zip(indices.shape, grid, strict=True)))
    entries = np.moveaxis(lut[(*blocks, indices)], -1, axis + 1)
    shape = [s * lut.shape[-1] if i == axis else s for i, s in enumerate(indices.shape)]
    return entries.reshape(shape)


def _scaled(program: ir.Program, value: ir.Value, dense: Array) -> tuple[Array, list[str]]:
    """Follow scales, and the cast between them, from a looked-up value to the weight.

    Returns:
        The weight, and the names of the constants on the way.
    """
    names: list[str] = []
    while True:
        step = next(
            (
                user
                for user in ir.users(value)
                if user.name in ("coreai.blockwise_shift_scale", "coreai.cast")
                and user.operands[0] == value
            ),
            None,
        )
        if step is None or (step.name == "coreai.cast" and not _ours(dense, step)):
            return dense, names
        value = step.results[0]
        dtype = _DTYPES[ir.element_name(value)]
        if step.name == "coreai.cast":
            dense = dense.astype(dtype)
            continue
        parts = [_constant(program, part) for part in list(step.operands)[1:]]
        names += [part[0] for part in parts if part[0]]
        scale, offset, zero = (_spread(_array(part).astype(dtype), dense.shape) for part in parts)
        dense = scale * (dense.astype(dtype) - offset) + zero


def _ours(dense: Array, step: ir.Operation) -> bool:
    """Return whether a cast rounds a dequantized weight to 16 bits."""
    return dense.dtype == np.float32 and ir.element_name(step.results[0]) in ("f16", "bf16")


def _constant(program: ir.Program, value: ir.Value) -> tuple[str, str, list[int], Any]:
    found = program.constant(value)
    if found is None:
        raise BackendError(
            "a look-up table of the file is not stored as the coreai backend of palette_core "
            "stores it; only its own files can be read"
        )
    return found


def _array(constant: tuple[str, str, list[int], Any]) -> Array:
    _, kind, shape, content = constant
    if isinstance(content, bytes):
        return np.frombuffer(content, _DTYPES[kind]).reshape(shape)
    return np.full(shape, content, _DTYPES[kind])


def _spread(values: Array, shape: tuple[int, ...]) -> Array:
    """Repeat each element over its block."""
    for axis, (got, wanted) in enumerate(zip(values.shape, shape, strict=True)):
        values = values.repeat(wanted // got, axis)
    return values


def _unpacked(packed: Any, n_bits: int, count: int) -> npt.NDArray[np.uint8]:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little", count=count * n_bits)
    weights = (1 << np.arange(n_bits)).astype(np.uint8)
    indices: npt.NDArray[np.uint8] = (bits.reshape(-1, n_bits) * weights).sum(1, dtype=np.uint8)
    return indices
