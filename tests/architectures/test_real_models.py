"""Real models with their own weights, from planning to the runtimes.

MiniLM comes with the demo's packages; the others are tried where they have been downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page import is_as_written
from real import REAL, RealModel
from trip import Arrived, distance, n_weights, tensors, weights_read

from palette_core import KMeansPalettizer, load_checkpoint
from palette_core.errors import PaletteWarning

pytestmark = pytest.mark.slow
FLOAT32 = {"compute_precision": "float32"}


@pytest.fixture(scope="module", params=REAL, ids=lambda real: real.name)
def real(request) -> RealModel:
    """Return one model after the other, each with all its tests."""
    return request.param


@pytest.fixture(scope="module")
def arrived(real: RealModel, tmp_path_factory) -> Iterator[Arrived]:
    """Give the model, palettized by the defaults and out of a checkpoint in a fresh model."""
    path = tmp_path_factory.mktemp("real") / "m.safetensors"
    model, inputs = real.load()
    palettizer = KMeansPalettizer(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaletteWarning)
        palettizer.prepare(dict(inputs))
    palettizer.export(path, backend="packed")
    fresh = load_checkpoint(path, real.forgotten())
    with torch.no_grad():
        wanted, packed = tensors(fresh(**inputs)), tensors(model(**inputs))
    for one, other in zip(wanted, packed, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    yield Arrived(
        fresh, dict(inputs), wanted, weights_read(fresh, dict(inputs)), KMeansPalettizer(fresh)
    )
    path.unlink()


def exported(arrived: Arrived, real: RealModel, backend: str, path: Path, **options: Any) -> Path:
    """Plan the dense model for a backend, and export the palettized one to it."""
    dense, inputs = real.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaletteWarning)
        plan = KMeansPalettizer(dense).make_plan(
            dict(inputs), backend=backend, backend_options=options
        )
    assert len({entry.name for entry in plan}) == n_weights(arrived.model)
    return arrived.palettizer.export(path, arrived.inputs, backend=backend, backend_options=options)


def test_core_ai_computes_what_torch_does(real: RealModel, arrived: Arrived, tmp_path) -> None:
    pytest.importorskip("coreai_torch")
    from coreai_support import run_file

    from coreai_backend import stored_weights

    path = exported(arrived, real, "coreai", tmp_path / "m.aimodel")
    assert distance(run_file(path, *arrived.given), arrived.wanted) <= 1e-4
    stored = {(w.n_bits, w.indices.tobytes(), w.lut.tobytes()) for w in stored_weights(path)}
    assert len(stored) == n_weights(arrived.model)
    assert is_as_written(real.name, "coreai", "right")


def test_core_ml_computes_what_torch_does(real: RealModel, arrived: Arrived, tmp_path) -> None:
    ct = pytest.importorskip("coremltools")
    from mil_evaluator import run_package

    path = exported(arrived, real, "coreml", tmp_path / "m.mlpackage", **FLOAT32)
    found: list[np.ndarray] = [*run_package(path, [x.numpy() for x in arrived.given]).values()]
    assert distance(found, arrived.wanted) <= 1e-4
    (function,) = ct.utils.load_spec(str(path)).mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    decoded = [operation.type == "constexpr_lut_to_dense" for operation in block.operations]
    assert sum(decoded) == n_weights(arrived.model)
    assert is_as_written(real.name, "coreml", "right")


def test_openvino_computes_what_torch_does(real: RealModel, arrived: Arrived, tmp_path) -> None:
    pytest.importorskip("openvino")
    from openvino_support import run_file

    path = exported(arrived, real, "openvino", tmp_path / "m.xml")
    assert distance(run_file(path, *arrived.given), arrived.wanted) <= 1e-4
    assert is_as_written(real.name, "openvino", "right")
