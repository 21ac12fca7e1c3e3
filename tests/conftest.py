"""What every test shares: reproducible hypothesis, two threads, skips for absent equipment."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(2)


def _absent_equipment() -> dict[str, str]:
    """Marker of tests that cannot run here, and why."""
    absent = {}
    if not torch.cuda.is_available():
        absent["cuda"] = "no CUDA device"
    if importlib.util.find_spec("coreai_opt") is None:
        absent["peer"] = "coreai-opt is not installed; tox -e peer has it"
    return absent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, reason in _absent_equipment().items():
        for item in items:
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def untouched_rng() -> Iterator[None]:
    """Fail the test if it moves a global random generator."""
    kept = _rng_states()
    yield
    moved = [name for name, state in _rng_states().items() if state != kept[name]]
    assert not moved, f"global random state moved: {', '.join(moved)}"


def _rng_states() -> dict[str, object]:
    name, keys, *rest = np.random.get_state(legacy=True)
    states: dict[str, object] = {
        "random": random.getstate(),
        "numpy": (name, keys.tobytes(), *rest),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_available():
        states["cuda"] = [s.numpy().tobytes() for s in torch.cuda.get_rng_state_all()]
    return states
