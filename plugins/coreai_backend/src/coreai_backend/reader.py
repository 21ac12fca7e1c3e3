"""Decode the palettized weights of a saved file, by numpy, without running it.

Written against the file format alone: nothing here shares code with the decoding of
palette_core, so that each can be judged by the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from coreai_backend import ir
from coreai_backend.decoding import (
    SCALE,
    array_of,
    constant_of,
    integers_of,
    looked_up,
    scaled,
    stepped,
    table_of,
)
from palette_core.errors import BackendError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StoredWeight:
    """A palettized weight as it lies in a file.

    Attributes:
        name: qualified name of the first module that owns it, and of its parameter.
        n_bits: bits per stored index.
        indices: uint8, unpacked; the weight's shape with ``axis`` divided by the vector length, or
            ``[N]`` of the N nonzeros of a sparse weight, in row-major order.
        lut: ``[*grid, 2 ** n_bits, vector length]`` in the dtype that is stored. Of sparse weights
            the grid may have one axis only: rows of that many tables follow each other.
        axis: the axis along which the values of an entry lie.
        dense: the weight, in its dtype (``ml_dtypes.bfloat16`` for that one).
        mask: bool, of the weight's shape: where a sparse weight is not zero; None of others.
    """

    name: str
    n_bits: int
    indices: Array
    lut: Array
    axis: int
    dense: Array
    mask: Array | None = None


_LOOK_UP = "coreai.lut_to_dense"
_PART = re.compile(r"(\.\d+)?\.\w+$")
_BUILD = "coreai.build_sparse_with_bitmask"
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
    found = [
        *(_dense(program, op) for op in program.operations(_LOOK_UP) if not _is_sparse(op)),
        *_picked(program),
        *(_sparse(program, op) for op in program.operations("coreai.sparse_with_bitmask_to_dense")),
    ]
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


def _is_sparse(op: ir.Operation) -> bool:
    users = ir.users(op.results[0])
    while users and users[0].name in ("coreai.slice", "coreai.concat"):
        users = ir.users(users[0].results[0])
    return any(user.name == _BUILD for user in users)


def _dense(program: ir.Program, op: ir.Operation) -> _Named:
    """Return a weight that has no name yet, and the names of its parts, indices first."""
    given, lut, axis = (constant_of(program, value) for value in op.operands)
    name, n_bits, indices = integers_of(given)
    table, along = array_of(lut), int(array_of(axis).reshape(-1)[0])
    dense, scales = scaled(program, op.results[0], looked_up(indices, table, along))
    names = [part.rpartition(".")[0] for part in (name, lut[0], *scales)]
    return names, StoredWeight("", n_bits, indices, table, along, dense)


def _picked(program: ir.Program) -> Iterator[_Named]:
    """Yield weights whose entries stand for themselves: every byte is one."""
    for op in program.operations(SCALE):
        found = program.constant(op.operands[0])
        if found is None or not found[0].endswith(f".{ir.PICKED}"):
            continue
        values = array_of(found)
        dense, scales = stepped(program, op, values)
        dense, more = scaled(program, op.results[0], dense)
        names = [part.rpartition(".")[0] for part in (found[0], *scales, *more)]
        table = np.arange(256, dtype=np.uint8).view(values.dtype)
        lut = table.reshape(*[1] * values.ndim, 256, 1)
        yield names, StoredWeight("", 8, values.view(np.uint8), lut, 0, dense)


def _sparse(program: ir.Program, op: ir.Operation) -> _Named:
    """Return a sparse weight, looked up before its values are put in their places, or after."""
    made = op.operands[0].owner
    listed = made.name == _BUILD
    built = made if listed else made.operands[0].owner
    first, bitmask = built.operands
    masked, _, mask = integers_of(constant_of(program, bitmask))
    nonzero = mask.astype(bool)
    if listed:
        runs = [_listed(program, value) for value in _parts(first)]
        n_bits, along = runs[0].n_bits, runs[0].axis
        indices = np.concatenate([run.indices for run in runs])
        table = np.concatenate([run.lut for run in runs])
        values = np.concatenate([run.dense for run in runs])
        parts = [name for run in runs for name in run.names]
        parts[1:1] = [masked]
    else:
        _, lut, axis = made.operands
        name, n_bits, indices = integers_of(constant_of(program, first))
        table, entries, names = table_of(program, lut)
        along = int(array_of(constant_of(program, axis)).reshape(-1)[0])
        mask[nonzero] = indices
        values = looked_up(mask, entries, along)[nonzero]
        parts = [name, masked, *names]
    dense, result = np.zeros(nonzero.shape, values.dtype), op.results[0]
    dense[nonzero] = values
    if masked.endswith(f".{ir.LONGER_MASK}"):
        result, dense, nonzero, indices = _cut(result, dense, nonzero, indices, table.shape[-1])
    dense, late = scaled(program, result, dense)
    # Tables may be spread over constants ``NAME.TABLE.lut``.
    names = [_PART.sub("", part) for part in (*parts, *late)]
    return names, StoredWeight("", n_bits, indices, table, along, dense, nonzero)


def _cut(
    value: ir.Value, dense: Array, nonzero: Array, indices: Array, dim: int
) -> tuple[ir.Value, Array, Array, Array]:
    """Return a weight, mask and indices, all of rows that are too long, cut to its shape."""
    (cut,) = ir.users(value)
    width = ir.shape_of(cut.results[0])[1]
    (shaped,) = ir.users(cut.results[0])
    made = shaped.results[0]
    dense, nonzero = dense[:, :width], nonzero[:, :width]
    used = -(-nonzero.sum(1) // dim)
    rows = indices.reshape(len(nonzero), -1)
    kept = rows[np.arange(rows.shape[1]) < used[:, None]]
    shape = ir.shape_of(made)
    return made, dense.reshape(shape), nonzero.reshape(shape), kept


class _Run(NamedTuple):
    """A look-up of vectors of nonzeros in tables that follow each other."""

    names: list[str]
    n_bits: int
    indices: Array
    lut: Array
    axis: int
    dense: Array


def _parts(value: ir.Value) -> list[ir.Value]:
    """Return the lists that a list of values is made of."""
    return list(value.owner.operands)[1:] if value.owner.name == "coreai.concat" else [value]


def _listed(program: ir.Program, value: ir.Value) -> _Run:
    """Return what stands for a list of values: looked up, and perhaps cut short."""
    count = ir.shape_of(value)[0]
    made = value.owner
    if made.name == "coreai.slice":
        made = made.operands[0].owner
    given, lut, axis = made.operands
    name, n_bits, indices = integers_of(constant_of(program, given))
    table, entries, names = table_of(program, lut)
    along = int(array_of(constant_of(program, axis)).reshape(-1)[0])
    values = looked_up(indices, entries, along)[:count]
    return _Run([name, *names], n_bits, indices, table, along, values)
