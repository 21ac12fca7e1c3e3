"""Read palettized weights out of a saved package, by coremltools' own decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import numpy.typing as npt
from coremltools.converters.mil.frontend.milproto.load import load as load_milproto
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import (
    constexpr_lut_to_dense,
    constexpr_sparse_to_dense,
)

from palette_core.errors import BackendError
from palette_core.storage import read_json

Array = npt.NDArray[Any]

METADATA_KEY = "palette_core.weights"
_PREFIX = "constexpr_"
_DECODED_AT_ONCE = 1 << 24  # table entries: coremltools copies the table for every index


def read_weights(path: str | Path) -> dict[str, Array]:
    """Decode every palettized weight of a saved ``.mlpackage``.

    Args:
        path: the package. Only its weights are read; nothing runs, so any system will do.

    Returns:
        The dense weights, float32 or float16 as stored, by name. In packages written by this
        plug-in's export, names are the fully qualified ones of the torch model (of tied weights
        the first), with the range in brackets where a weight is stored in parts:
        ``"attention.in_proj_weight[0:64]"``. In others they are those of Core ML's operations.

    Raises:
        BackendError: ``path`` is no package of an ML program, or its metadata is damaged.
    """
    model = open_package(path)
    try:
        names = dict(read_json(model.user_defined_metadata.get(METADATA_KEY, "{}")))
    except (TypeError, ValueError) as error:
        raise BackendError(f"{path}: its {METADATA_KEY!r} metadata is damaged: {error}") from None
    weights: dict[str, Array] = {}
    for op in constant_expressions(model, roots=True):
        weight = decode(op)
        weights |= dict.fromkeys(names.get(op.name, [op.name]), weight)
    return weights


def open_package(path: str | Path) -> Any:
    """Return the package's `coremltools.models.MLModel`, not compiled.

    Raises:
        BackendError: it cannot be read.
    """
    try:
        model = ct.models.MLModel(str(path), skip_model_load=True)
    except Exception as error:
        raise BackendError(f"{path} cannot be read as a Core ML package: {error}") from error
    if model.get_spec().WhichOneof("Type") != "mlProgram":
        raise BackendError(f"{path} holds no ML program; only those hold palettized weights")
    return model


def program_of(model: Any) -> Any:
    """Return the program of a package, from `open_package`, with its weights.

    Raises:
        BackendError: it is damaged: its weights are cut off, say.
    """
    spec = model.get_spec()
    try:
        return load_milproto(
            spec,
            specification_version=spec.specificationVersion,
            file_weights_dir=model.weights_dir,
        )
    except Exception as error:
        raise BackendError(
            f"{model.package_path}: the package is damaged, or its weight file is cut: {error}"
        ) from error


def constant_expressions(model: Any, *, roots: bool) -> Iterator[Any]:
    """Yield the operations of a package that decode weights.

    Args:
        model: from `open_package`.
        roots: only those whose result is a weight, not a part of another such operation.
    """
    for function in program_of(model).functions.values():
        for op in function.operations:
            if not op.op_type.startswith(_PREFIX):
                continue
            users = op.outputs[0].child_ops
            if not roots or not users or any(not u.op_type.startswith(_PREFIX) for u in users):
                yield op


def decode(op: Any) -> Array:
    """Return the dense weight of a constant expression, its parts decoded first."""
    values = {name: _constant(var) for name, var in op.inputs.items()}
    if op.op_type == "constexpr_lut_to_dense" and "shape" not in values:
        return _look_up(op, values["indices"], values["lut"], values.get("vector_axis"))
    if op.op_type == "constexpr_blockwise_shift_scale":
        return np.asarray(op.decompress(values["data"], values["scale"], values.get("offset")))
    if op.op_type == "constexpr_sparse_to_dense" and "shape" not in values:
        return np.asarray(op.decompress(values["nonzero_data"], values["mask"]))
    return np.asarray(op.materialized_val_inference())


def _constant(var: Any) -> Any:
    if var is None:
        return None
    if var.op.op_type == "constexpr_lut_to_sparse":
        return _sparse(var.op)[var.op.outputs.index(var)]
    return var.val if var.op.op_type == "const" else decode(var.op)


def _sparse(op: Any) -> tuple[Array, Array]:
    """Return the two results of a look-up of sparse indices; coremltools, too, does it densely."""
    names = ("indices_mask", "indices_nonzero_data", "lut")
    mask, codes, lut = (_constant(op.inputs[name]) for name in names)
    indices = constexpr_sparse_to_dense.decompress(codes, mask)
    looked_up = _look_up(constexpr_lut_to_dense, indices, lut, None)
    return mask, looked_up[mask != 0]


def _look_up(op: Any, indices: Array, lut: Array, axis: Any) -> Array:
    """Decode rows at a time: coremltools needs a copy of the table for each index."""
    cells = lut.shape[0]
    per_cell = len(indices) // cells
    weight = math.prod(indices.shape[1:]) * math.prod(lut.shape[-2:])
    step = max(1, _DECODED_AT_ONCE // max(1, weight))
    starts = [
        (cell, at)
        for cell in range(cells)
        for at in range(cell * per_cell, (cell + 1) * per_cell, step)
    ]
    parts = []
    for cell, at in starts:
        rows = indices[at : min(at + step, (cell + 1) * per_cell)]
        parts.append(op.decompress(rows, lut[cell : cell + 1], axis))
    return np.concatenate(parts)
