"""Dense weights of programs that exist: read out of an ``.aimodel``, and replaced by palettes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coreai_backend import ir
from coreai_backend.lowering import emit
from coreai_backend.reader import stored_weights
from palette_core.errors import BackendError
from palette_core.plugins import ProgramWeight
from palette_core.tensors import PalettizedTensor, StoredTensor

_AMBIGUOUS = "constants of other shapes lie in the same bytes"
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# By operation: which operand is a weight, what it is called in torch, its axis of outputs.
_CONSUMERS = {
    "coreai.conv2d": (1, "conv2d", 0),
    "coreai.conv3d": (1, "conv3d", 0),
    "coreai.conv_transpose2d": (1, "conv_transpose2d", 1),
    "coreai.gather_nd": (0, "embedding", 0),
}
_PRODUCTS = ("coreai.batch_matmul", "coreai.decomposable.broadcasting_batch_matmul")


def read_program(path: Path) -> dict[str, ProgramWeight]:
    """Return the dense weights of two axes and more that are stored in full, by their names.

    Raises:
        BackendError: the program cannot be read.
    """
    program = _opened(path)  # operations do not outlive it
    found: dict[str, ProgramWeight] = {}
    for name, values, op in _constants(program):
        known = found.setdefault(name, ProgramWeight(values, *_use(op.results[0])))
        if (known.values.shape, known.values.dtype) != (values.shape, values.dtype):
            found[name] = replace(known, obstacle=_AMBIGUOUS)
    return found


def replace_weights(path: Path, palettized: Mapping[str, PalettizedTensor], fresh: Path) -> Path:
    """Write the program with palettes in the place of dense weights, and read them again.

    Raises:
        BackendError: the program cannot be read, or a weight decodes to other values.
    """
    program = _opened(path)
    for name, _, op in _constants(program):
        if name in palettized:
            program.replace(op, _emission(name, palettized[name]))
    program.save(fresh)
    _verify(fresh, palettized)
    return fresh


def _opened(path: Path) -> ir.Program:
    try:
        return ir.Program(path)
    # The bindings raise RuntimeError and its kin for files they cannot read.
    except Exception as error:
        raise BackendError(f"{path} cannot be read as an .aimodel: {error}") from error


class _Weight(NamedTuple):
    name: str
    values: Tensor
    operation: ir.Operation


def _constants(program: ir.Program) -> list[_Weight]:
    """Return the constants that may be weights: floats of two axes, with bytes of their own."""
    found = []
    for op in program.operations("coreai.constant"):
        name, kind, shape, content = program.constant(op.results[0]) or ("", "", [], 0.0)
        tables = any(user.name == "coreai.lut_to_dense" for user in ir.users(op.results[0]))
        if kind in _DTYPES and len(shape) > 1 and isinstance(content, bytes) and not tables:
            values = torch.frombuffer(bytearray(content), dtype=_DTYPES[kind]).reshape(shape)
            found.append(_Weight(name, values, op))
    return found


def _emission(name: str, tensor: PalettizedTensor) -> Callable[[], ir.Value]:
    stored = StoredTensor.of(tensor, {"indices": tensor.packed_indices()})
    return lambda: emit(name, stored)


def _use(value: ir.Value) -> tuple[str | None, int | None]:
    """Return what the first consumer that is known is in torch, and its axis of outputs."""
    for user in ir.users(value):
        if user.name in _CONSUMERS:
            operand, op_type, axis = _CONSUMERS[user.name]
            if user.operands[operand] == value:
                return op_type, axis
        if user.name in _PRODUCTS and user.operands[1] == value:
            return "linear", len(ir.shape_of(value)) - 1
        if user.name == "coreai.transpose" and len(ir.shape_of(value)) == 2:
            products = (n for n in ir.users(user.results[0]) if n.name in _PRODUCTS)
            if any(n.operands[1] == user.results[0] for n in products):
                return "linear", 0
    return None, None


def _verify(path: Path, palettized: Mapping[str, PalettizedTensor]) -> None:
    dense = {weight.name: weight.dense for weight in stored_weights(path)}
    for name, tensor in palettized.items():
        if name not in dense or not _same(dense[name], _as_numpy(tensor.decode())):
            raise BackendError(
                f"{path}: {name} does not decode to its palettized values; leave it out of the "
                "config"
            )


def _same(stored: Any, wanted: Any) -> bool:
    values = stored.astype(np.float32) if stored.dtype.name == "bfloat16" else stored
    return stored.shape == wanted.shape and np.array_equal(values, wanted)


def _as_numpy(tensor: Tensor) -> Any:
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
