"""Dense weights of packages that exist: read out of them, and replaced by palettes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.models.utils import _apply_graph_pass

from coreml_backend.constants import emit
from coreml_backend.folding import folded_values
from coreml_backend.reading import open_package, program_of, read_weights
from coreml_backend.refusals import generation
from coreml_backend_hooks import CoreMLOptions
from palette_core.errors import BackendError
from palette_core.plugins import ProgramWeight
from palette_core.tensors import PalettizedTensor

_DEFAULT = "main"
_AMBIGUOUS = "functions of the program give its name to different weights"
_PALETTIZED = "_palettized"
# By operation: which of its inputs is a weight, what it is called in torch, its axis of outputs.
_CONSUMERS = {
    "linear": ("weight", "linear", 0),
    "conv": ("weight", "conv{}d", 0),
    "conv_transpose": ("weight", "conv_transpose{}d", 1),
    "gather": ("x", "embedding", 0),
}


def read_program(path: Path, options: CoreMLOptions) -> dict[str, ProgramWeight]:
    """Return the dense weights of two axes and more, by the names of their constants.

    Raises:
        BackendError: the package cannot be read, or is of a later target than the one asked for.
    """
    found: dict[str, ProgramWeight] = {}
    model = open_package(path)
    default = model.get_spec().description.defaultFunctionName or _DEFAULT
    if default != _DEFAULT:
        raise BackendError(
            f"{path}: its default function is {default!r}, and coremltools rewrites programs only "
            f"where it is {_DEFAULT!r}; save it again with that default_function_name"
        )
    asked = "deployment_target" in options.model_fields_set
    for function in program_of(model).functions.values():
        if asked and (function.opset_version or 0) > generation(options):
            raise BackendError(
                f"{path}: its operations are of {function.opset_version.name}, which "
                f"{options.deployment_target} does not load; set deployment_target to that, or "
                "leave it out"
            )
        for op in _weights(function):
            values = torch.from_numpy(np.array(op.outputs[0].val))
            known = found.setdefault(op.name, ProgramWeight(values, *_use(op.outputs[0])))
            if known.values.dtype != values.dtype or not torch.equal(known.values, values):
                found[op.name] = replace(known, obstacle=_AMBIGUOUS)
    return found


def replace_weights(
    path: Path, palettized: Mapping[str, PalettizedTensor], fresh: Path, options: CoreMLOptions
) -> Path:
    """Write the package with palettes in the place of dense weights, and read them again.

    Raises:
        BackendError: the package cannot be read, or a weight decodes to other values.
    """
    model = open_package(path)
    target, folds = generation(options), options.channel_scales == "folded"
    made = _apply_graph_pass(
        model, _Replacement(palettized, target, folds), spec_version=target, skip_model_load=True
    )
    for key, value in model.user_defined_metadata.items():
        made.user_defined_metadata[key] = value
    made.save(str(fresh))
    stored = read_weights(fresh)
    for name, tensor in palettized.items():
        found = stored.get(name + _PALETTIZED)
        once = folds and tensor.mask is None and target >= ct.target.iOS26
        wanted = folded_values(tensor, tensor.dtype) if once else tensor.decode()
        if found is None or not np.array_equal(found, wanted.numpy()):
            raise BackendError(
                f"{fresh}: {name} does not decode to its palettized values; keep its tables "
                "floats, or leave it out of the config"
            )
    return fresh


@final
class _Replacement(AbstractGraphPass):  # type: ignore[misc]  # coremltools has no types
    def __init__(
        self, palettized: Mapping[str, PalettizedTensor], target: Any, folds: bool
    ) -> None:
        super().__init__()
        self._palettized, self._target, self._folds = palettized, target, folds

    def apply(self, prog: Any) -> None:
        for function in prog.functions.values():
            if function.opset_version is None or function.opset_version < self._target:
                function.opset_version = self._target
            for op in list(_weights(function)):
                if op.name in self._palettized:
                    _replace(function, op, self._palettized[op.name], self._folds)


def _replace(function: Any, op: Any, tensor: PalettizedTensor, folds: bool) -> None:
    before = {id(each) for each in function.operations}
    with function:
        var = emit(tensor, op.name + _PALETTIZED, folds=folds)
    # They are emitted at the end; what reads them comes earlier.
    for made in [each for each in function.operations if id(each) not in before]:
        function.operations.remove(made)
        function.operations.insert_op_before(made, op)
    function.replace_uses_of_var_after_op(
        anchor_op=var.op, old_var=op.outputs[0], new_var=var, force_replace=True
    )
    function.remove_ops([op])


def _weights(function: Any) -> Iterator[Any]:
    """Yield the constants that may be weights: floats of two axes that no table is made of."""
    for op in function.operations:
        if op.op_type != "const":
            continue
        value, users = op.outputs[0].val, op.outputs[0].child_ops
        if not isinstance(value, np.ndarray) or value.ndim < 2:
            continue
        floats = value.dtype in (np.float32, np.float16)
        if floats and users and not any(user.op_type.startswith("constexpr_") for user in users):
            yield op


def _use(var: Any) -> tuple[str | None, int | None]:
    """Return what the first consumer that is known is in torch, and its axis of outputs."""
    for op in var.child_ops:
        if op.op_type in _CONSUMERS:
            name, op_type, axis = _CONSUMERS[op.op_type]
            if op.inputs.get(name) is var:
                return op_type.format(len(var.shape) - 2), axis
        if op.op_type == "matmul" and op.inputs["y"] is var:
            turned = bool(op.inputs["transpose_y"].val)
            return "linear", len(var.shape) - (2 if turned else 1)
    return None, None
