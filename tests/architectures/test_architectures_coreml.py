"""Architectures from end to end: the ML program, evaluated, is what torch computes."""

from __future__ import annotations

import json

import pytest
from all_of_them import tried
from page import is_as_written
from record import Architecture
from trip import distance, travel

ct = pytest.importorskip("coremltools")
pytest.importorskip("coreml_backend")
pytestmark = pytest.mark.slow
OPTIONS = {"compute_precision": "float32"}


@pytest.mark.parametrize("architecture", tried(), ids=lambda a: a.name)
def test_outputs_are_those_of_the_finalized_model(architecture: Architecture, tmp_path) -> None:
    from mil_evaluator import run_package

    from coreml_backend.reading import METADATA_KEY

    arrived = travel(architecture, "coreml", tmp_path, **OPTIONS)
    if isinstance(arrived, str):
        assert is_as_written(architecture.name, "coreml", f"refused: {arrived.partition(';')[0]}")
        return
    path = arrived.palettizer.export(
        tmp_path / "m.mlpackage", arrived.inputs, backend="coreml", backend_options=OPTIONS
    )
    found = run_package(path, [tensor.numpy() for tensor in arrived.given])
    assert distance(list(found.values()), arrived.wanted) <= 1e-4
    metadata = ct.utils.load_spec(str(path)).description.metadata.userDefined
    stored = [name for names in json.loads(metadata[METADATA_KEY]).values() for name in names]
    assert len(stored) == len(set(stored)), "a weight, or a part of one, is stored twice"
    assert {name.partition("[")[0] for name in stored} == set(arrived.read)
    assert is_as_written(architecture.name, "coreml", "right")
