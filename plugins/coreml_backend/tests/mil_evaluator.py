"""Evaluates saved ML programs, operation by operation, in numpy and torch.

Core ML runs on Apple's systems only. This is written against the documentation of each operation
in coremltools' ``mil/ops/defs``, not against its converter, so that the two can disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import mil_layers
import mil_operations
import numpy as np
import numpy.typing as npt
from coremltools.converters.mil.frontend.milproto.load import load

Array = npt.NDArray[Any]
OPERATIONS = {**mil_operations.TABLE, **mil_layers.TABLE}


def run_package(path: Path, inputs: Sequence[Array] | Mapping[str, Array]) -> dict[str, Array]:
    """Evaluate the function ``main`` once; states start as zeros.

    Args:
        path: a saved package of an ML program.
        inputs: in the program's order, or by name.

    Returns:
        The outputs by name, in the program's order.
    """
    return Package(path)(inputs)


class Package:
    """A saved ML program, evaluated time after time; its states start as zeros.

    Args:
        path: of the package.
        function: which one of several.
    """

    def __init__(self, path: Path, function: str = "main") -> None:
        model = ct.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        # Not model.weights_dir: its search for the folder swallows every exception, those of
        # signals too, and then says that there is none.
        folder = str(path / "Data" / "com.apple.CoreML" / "weights")
        version = spec.specificationVersion
        program = load(spec, specification_version=version, file_weights_dir=folder)
        self._function = program.functions[function]
        described = {f.name: f.state for f in spec.description.functions}
        names = described.get(function, spec.description.state)
        self.states = {
            state.name: np.zeros(self._function.inputs[state.name].shape, np.float32)
            for state in names
        }

    def __call__(self, inputs: Sequence[Array] | Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name, in the program's order; the states are kept."""
        names = [name for name in self._function.inputs if name not in self.states]
        given = inputs if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
        held = {name: np.asarray(value) for name, value in given.items()} | self.states
        evaluate_block(self._function, held)
        self.states = {name: held[name] for name in self.states}
        return {var.name: held.get(var.name, var.val) for var in self._function.outputs}


def evaluate_block(block: Any, held: dict[str, Any]) -> None:
    """Add the result of every operation of a block to ``held``, by name."""
    for op in block.operations:
        with np.errstate(all="ignore"):
            _evaluate(op, held)


def _evaluate(op: Any, held: dict[str, Any]) -> None:
    def value(var: Any) -> Any:
        if isinstance(var, (list, tuple)):
            return [value(item) for item in var]
        if var is None:
            return None
        return held.get(var.name, var.val)

    kind = op.op_type
    if kind == "const":
        return
    if kind == "read_state":
        held[op.outputs[0].name] = held[op.inputs["input"].name]
        return
    if kind == "coreml_update_state":
        held[op.inputs["state"].name] = value(op.inputs["value"])
        held[op.outputs[0].name] = value(op.inputs["value"])
        return
    if kind == "cond":
        block = op.blocks[0] if bool(value(op.inputs["pred"])) else op.blocks[1]
        evaluate_block(block, held)
        results: Any = [value(var) for var in block.outputs]
    else:
        if kind not in OPERATIONS:
            raise NotImplementedError(f"the evaluator does not know {kind} ({op.name})")
        arguments = mil_operations.Arguments(
            {name: value(var) for name, var in op.inputs.items() if var is not None}
        )
        results = OPERATIONS[kind](arguments)
    results = results if isinstance(results, (list, tuple)) else [results]
    for var, result in zip(op.outputs, results, strict=True):
        held[var.name] = _checked(var, np.asarray(result))


def _checked(var: Any, result: Array) -> Array:
    """Return a result in the dtype of the program, its shape compared where that is fixed."""
    wanted = var.shape
    fixed = all(isinstance(size, (int, np.integer)) for size in wanted)
    if fixed and tuple(wanted) != result.shape:
        raise AssertionError(f"{var.op.op_type} {var.name}: {result.shape}, declared {wanted}")
    dtype = {
        "fp32": np.float32,
        "fp16": np.float16,
        "int32": np.int32,
        "bool": np.bool_,
    }.get(mil_operations.dtype_name(var))
    return result if dtype is None else result.astype(dtype)
