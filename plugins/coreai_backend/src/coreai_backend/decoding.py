"""Constants of a saved file as arrays: unpacked, looked up and scaled, by numpy.

Written against the file format alone, as the `reader` that goes by it.
"""

from __future__ import annotations

import math
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
SCALE = "coreai.blockwise_shift_scale"
_STEPS = (SCALE, "coreai.cast")


def table_of(program: ir.Program, lut: ir.Value) -> tuple[Array, Array, list[str]]:
    """Return tables as they are stored, what they stand for, and the names of their constants."""
    root, steps = _steps(lut)
    name, *_ = stored = constant_of(program, root)
    table, names = array_of(stored), [name]
    entries = table
    for step in steps:
        entries, more = stepped(program, step, entries)
        names += more
    return table, entries, names


def _steps(value: ir.Value) -> tuple[ir.Value, list[ir.Operation]]:
    """Return the constant that a table is computed from, and the steps from it to the table."""
    steps: list[ir.Operation] = []
    while getattr(value.owner, "name", None) in _STEPS:
        steps.insert(0, value.owner)
        value = value.owner.operands[0]
    return value, steps


def integers_of(given: tuple[str, str, list[int], Any]) -> tuple[str, int, npt.NDArray[np.uint8]]:
    """Return name, bits and values of a constant of unsigned integers."""
    name, kind, shape, packed = given
    n_bits = int(kind.removeprefix("ui"))
    return name, n_bits, _unpacked(packed, n_bits, math.prod(shape)).reshape(shape)


def looked_up(indices: Array, lut: Array, axis: int) -> Array:
    """Look indices up in tables ``[*grid, K, V]``, V values of an entry along ``axis``."""
    grid = lut.shape[:-2]
    blocks = np.ix_(*(np.arange(s) // (s // g) for s, g in zip(indices.shape, grid, strict=True)))
    entries = np.moveaxis(lut[(*blocks, indices)], -1, axis + 1)
    shape = [s * lut.shape[-1] if i == axis else s for i, s in enumerate(indices.shape)]
    return entries.reshape(shape)


def scaled(program: ir.Program, value: ir.Value, dense: Array) -> tuple[Array, list[str]]:
    """Follow scales, and the cast between them, from a looked-up value to the weight.

    Returns:
        The weight, and the names of the constants on the way.
    """
    names: list[str] = []
    while True:
        step = next(
            (user for user in ir.users(value) if user.name in _STEPS and user.operands[0] == value),
            None,
        )
        if step is None or (step.name == "coreai.cast" and not _ours(dense, step)):
            return dense, names
        value = step.results[0]
        dense, more = stepped(program, step, dense)
        names += more


def stepped(program: ir.Program, step: ir.Operation, data: Array) -> tuple[Array, list[str]]:
    """Return a scaled or cast array, and the names of the constants that it took."""
    dtype = _DTYPES[ir.element_name(step.results[0])]
    if step.name == "coreai.cast":
        return data.astype(dtype), []
    parts = [constant_of(program, part) for part in list(step.operands)[1:]]
    names = [part[0] for part in parts if part[0]]
    scale, offset, zero = (_spread(array_of(part).astype(dtype), data.shape) for part in parts)
    return scale * (data.astype(dtype) - offset) + zero, names


def _ours(dense: Array, step: ir.Operation) -> bool:
    """Return whether a cast rounds a dequantized weight to 16 bits."""
    return dense.dtype == np.float32 and ir.element_name(step.results[0]) in ("f16", "bf16")


def constant_of(program: ir.Program, value: ir.Value) -> tuple[str, str, list[int], Any]:
    """Return name, element type, shape and content of a constant.

    Raises:
        BackendError: the value is none.
    """
    found = program.constant(value)
    if found is None:
        raise BackendError(
            "a look-up table of the file is not stored as the coreai backend of palette_core "
            "stores it; only its own files can be read"
        )
    return found


def array_of(constant: tuple[str, str, list[int], Any]) -> Array:
    """Return a constant as an array."""
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
