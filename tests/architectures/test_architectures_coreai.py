"""Architectures from end to end: what runs in Core AI's runtime is what torch computes."""

from __future__ import annotations

from collections import Counter

import pytest
from all_of_them import tried
from page import is_as_written
from record import Architecture
from trip import distance, n_weights, travel

pytest.importorskip("coreai_torch")
pytest.importorskip("coreai_backend")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("architecture", tried(), ids=lambda a: a.name)
def test_outputs_are_those_of_the_finalized_model(architecture: Architecture, tmp_path) -> None:
    from coreai_support import run_file

    from coreai_backend import stored_weights

    arrived = travel(architecture, "coreai", tmp_path)
    if isinstance(arrived, str):
        assert is_as_written(architecture.name, "coreai", f"refused: {arrived.partition(';')[0]}")
        return
    path = arrived.palettizer.export(tmp_path / "m.aimodel", arrived.inputs, backend="coreai")
    found = run_file(path, *arrived.given)
    assert distance(found, arrived.wanted) <= 1e-4
    stored = stored_weights(path)
    # Several uses of a weight may decode it more than once, of one stored constant.
    assert len({(w.n_bits, w.indices.tobytes(), w.lut.tobytes()) for w in stored}) == n_weights(
        arrived.model
    )
    assert is_as_written(architecture.name, "coreai", "right"), Counter(w.name for w in stored)
