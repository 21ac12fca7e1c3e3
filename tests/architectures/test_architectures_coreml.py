"""Architectures from end to end: the ML program, evaluated, is what torch computes."""

from __future__ import annotations

import pytest
from all_of_them import tried
from page import is_as_written
from record import Architecture
from trip import distance, n_weights, travel

ct = pytest.importorskip("coremltools")
pytest.importorskip("coreml_backend")
pytestmark = pytest.mark.slow
OPTIONS = {"compute_precision": "float32"}


@pytest.mark.parametrize("architecture", tried(), ids=lambda a: a.name)
def test_outputs_are_those_of_the_finalized_model(architecture: Architecture, tmp_path) -> None:
    from mil_evaluator import run_package

    arrived = travel(architecture, "coreml", tmp_path, **OPTIONS)
    if isinstance(arrived, str):
        assert is_as_written(architecture.name, "coreml", f"refused: {arrived.partition(';')[0]}")
        return
    path = arrived.palettizer.export(
        tmp_path / "m.mlpackage", arrived.inputs, backend="coreml", backend_options=OPTIONS
    )
    found = run_package(path, [tensor.numpy() for tensor in arrived.given])
    assert distance(list(found.values()), arrived.wanted) <= 1e-4
    (block,) = (
        block
        for function in ct.utils.load_spec(str(path)).mlProgram.functions.values()
        for block in function.block_specializations.values()
    )
    decoded = sum(operation.type == "constexpr_lut_to_dense" for operation in block.operations)
    assert decoded == n_weights(arrived.model)
    assert is_as_written(architecture.name, "coreml", "right")
