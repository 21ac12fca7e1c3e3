"""Architectures from end to end: what runs in Core AI's runtime is what torch computes."""

from __future__ import annotations

import pytest
from all_of_them import tried
from page import is_as_written
from record import Architecture
from trip import distance, travel

from palette_core.storage import PackedWeight

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
    weights = stored_weights(path)
    stored = {(w.n_bits, w.indices.tobytes(), w.lut.tobytes()) for w in weights}
    named = {w.name for w in weights}
    # Several uses of a weight may decode it more than once, of one stored constant; weights that
    # are equal by chance share one. What comes to no output (a pooler that BigBird computes and
    # drops) is left out.
    kept = {_content(palette) for name, palette in arrived.read.items() if name in named}
    assert len(stored) == len(kept)
    for name, palette in arrived.read.items():
        assert _content(palette) in kept or arrived.ignores(palette), name
    assert is_as_written(architecture.name, "coreai", "right")


def _content(palette: PackedWeight) -> tuple[bytes, bytes]:
    stored = palette.palettized()
    return stored.indices.numpy().tobytes(), stored.lut.numpy().tobytes()
