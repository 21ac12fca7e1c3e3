"""Architectures from end to end: what runs in OpenVINO's runtime is what torch computes."""

from __future__ import annotations

import pytest
from all_of_them import tried
from page import is_as_written
from record import Architecture
from trip import distance, travel

pytest.importorskip("openvino")
pytest.importorskip("openvino_backend")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("architecture", tried(), ids=lambda a: a.name)
def test_outputs_are_those_of_the_finalized_model(architecture: Architecture, tmp_path) -> None:
    from openvino_support import run_file

    arrived = travel(architecture, "openvino", tmp_path)
    if isinstance(arrived, str):
        assert is_as_written(architecture.name, "openvino", f"refused: {arrived.partition(';')[0]}")
        return
    path = arrived.palettizer.export(tmp_path / "m.xml", arrived.inputs, backend="openvino")
    assert distance(run_file(path, *arrived.given), arrived.wanted) <= 1e-4
    assert is_as_written(architecture.name, "openvino", "right")
