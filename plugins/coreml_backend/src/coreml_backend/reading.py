"""Read palettized weights out of a saved package, by coremltools' own decoder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
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
from coremltools.libmodelpackage import ModelPackage

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
    names = _names_of(model.user_defined_metadata, path)
    weights: dict[str, Array] = {}
    for op in constant_expressions(model, roots=True):
        weight = decode(op)
        weights |= dict.fromkeys(names.get(op.name, [op.name]), weight)
    return weights


def _names_of(metadata: Mapping[str, str], path: str | Path) -> dict[str, list[str]]:
    try:
        return dict(read_json(metadata.get(METADATA_KEY, "{}")))
    except (TypeError, ValueError) as error:
        raise BackendError(f"{path}: its {METADATA_KEY!r} metadata is damaged: {error}") from None


def merged_names(of_functions: Iterable[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    """Return names of weights by operation; operations of other weights elsewhere have none."""
    merged: dict[str, list[str]] = {}
    for names in of_functions:
        for op, weights in names.items():
            if sorted(merged.setdefault(op, weights)) != sorted(weights):
                merged[op] = []
    return {op: weights for op, weights in merged.items() if weights}


def keep_names(made: str | Path, *sources: str | Path) -> None:
    """Let a package that coremltools has made of others call weights as these do.

    ``save_multifunction`` and ``bisect_model`` lose the user-defined metadata of their packages,
    and with it the names by which `read_weights` calls weights.

    Args:
        made: a package; only its metadata changes.
        sources: packages that it was made of.

    Raises:
        BackendError: one of them cannot be read.
    """
    package = open_package(made)
    found = [dict(open_package(path).user_defined_metadata) for path in sources]
    there = {op.name for op in constant_expressions(package, roots=False)}
    names = merged_names(_names_of(text, path) for text, path in zip(found, sources, strict=True))
    kept = {op: weights for op, weights in names.items() if op in there}
    spec = package.get_spec()
    for metadata in found:
        for key, value in metadata.items():
            spec.description.metadata.userDefined.setdefault(key, value)
    spec.description.metadata.userDefined[METADATA_KEY] = json.dumps(kept)
    place = Path(ModelPackage(str(made)).getRootModel().path())
    fresh = place.with_name(f".{place.name}.new")
    fresh.write_bytes(spec.SerializeToString())
    fresh.replace(place)


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
