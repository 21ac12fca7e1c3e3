"""Sets of fixed shapes, memory of inputs and outputs, system and metadata: read and run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import coreai_support as support
import numpy as np
import pytest
import torch
from coreai.authoring import AIModelAsset, AIProgram
from coreai.runtime import NDArray
from torch import Tensor, nn

from coreai_backend import read_weights
from palette_core import ExportFunction, KMeansPalettizer, PalettizationSpec
from palette_core.errors import BackendError, PluginOptionsError

X = torch.linspace(-1, 1, 48).reshape(6, 8)
ROWS = torch.export.Dim("rows", min=2, max=64)
SETS = {"step": {"prefill": {"x": [6, 8], "y": [6, 8]}, "short": {"x": [3, 8], "y": [3, 8]}}}
SURFACE = {"allocation": "IOSurface", "alignments": [1, 1, 64], "interleave": [1, 1]}
BUFFER = {"allocation": "MTLBuffer", "alignments": [1, 1], "interleave": [1]}


class Summing(nn.Module):
    """A layer of two inputs, and a state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 512)
        self.register_buffer("cache", torch.zeros(8))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.cache.copy_(self.cache + x.sum(0))
        return self.layer(x + y + self.cache)


Prepared = tuple[Summing, KMeansPalettizer]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """One model for all: exports leave it as it is."""
    model = Summing().eval()
    palettizer = KMeansPalettizer(model, support.config(PalettizationSpec(n_bits=4)))
    palettizer.prepare((X, X))
    return model, palettizer


def export(prepared: Prepared, path: Path, **options: Any) -> tuple[Summing, Path]:
    model, palettizer = prepared
    shapes = {"x": {0: ROWS}, "y": {0: ROWS}}
    functions = {
        "step": ExportFunction((X, X), shapes),
        "free": ExportFunction((X, X), shapes),
    }
    names = {"output_names": "scores", "state_names": {"cache": "kv"}}
    palettizer.export(path, functions=functions, backend_options=options, **names)
    return model, path


def run(path: Path, name: str, x: Tensor, cache: np.ndarray) -> np.ndarray:
    async def inside() -> np.ndarray:
        async with AIModelAsset.load(path).executable() as loaded:
            given = {"x": NDArray(x.numpy()), "y": NDArray(x.numpy())}
            state = {"kv": NDArray(cache)}
            outputs = await loaded.load_function(name)(inputs=given, state=state)
            return np.array(outputs["scores"].numpy())

    return asyncio.run(inside())


def test_sets_of_shapes_and_memory_are_in_the_file_and_it_runs(
    prepared: Prepared, tmp_path: Path
) -> None:
    layouts = {"step_short": {"x": SURFACE, "scores": SURFACE}, "free": {"kv": BUFFER}}
    model, path = export(
        prepared,
        tmp_path / "m.aimodel",
        static_shapes=SETS,
        hardware_constraints=layouts,
        user_metadata={"by": "us"},
        minimum_os="v27",
    )
    asset = AIModelAsset.load(path)
    summary = asset.summary()
    assert set(summary.function_names) == {"step_prefill", "step_short", "free"}
    assert "6 × 8" in str(summary.function_inputs("step_prefill"))
    assert "3 × 8" in str(summary.function_inputs("step_short"))
    assert "27.0" in str(summary)
    assert asset.metadata.creator_defined_metadata == {"by": "us"}
    for name, x in (("step_prefill", X), ("step_short", X[:3]), ("free", X)):
        model.cache.zero_()
        with torch.no_grad():
            wanted = model(x, x).numpy()
        assert np.abs(run(path, name, x, np.zeros(8, np.float32)) - wanted).max() < 1e-4
    text = str(AIProgram._load_bytecode(path / "main.mlirb"))
    for part in ("IOSurface, alignments: [1x1x64]", "MTLBuffer, alignments: [1x1]"):
        assert part in text
    assert set(read_weights(path)) == {"layer.weight"}
    np.testing.assert_array_equal(read_weights(path)["layer.weight"], model.layer.weight.detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"static_shapes": {"stp": {}}}, "static_shapes: no function is called 'stp'.*mean 'step'"),
        ({"static_shapes": {"step": {"a": {"z": [6, 8]}}}}, "step.a: no input or state.* 'z'"),
        ({"static_shapes": {"step": {"a": {"x": [6]}}}}, r"step.a.x is \[6\], and 'x' has 2 axes"),
        ({"static_shapes": {"step": {"a": {"x": [6, 9]}}}}, "axis 1 is 8, and not 9"),
        ({"static_shapes": {"step": {"a": {"x": [65, 8]}}}}, "axis 0 is 2 to 64, and not 65"),
        (
            {"static_shapes": {"step": {"a": {"x": [6, 8], "y": [5, 8]}}}},
            "step.a.y: axis 0 is 6 by the other sizes, and not 5",
        ),
        (
            {"hardware_constraints": {"step": {"x": SURFACE}}, "static_shapes": SETS},
            "no function is called 'step'.*there are free, step_prefill, step_short",
        ),
        (
            {"hardware_constraints": {"free": {"kv": {**BUFFER, "alignments": [1, 64]}}}},
            "free.kv is a state.*leave all of both at 1",
        ),
        ({"hardware_constraints": {"free": {"z": SURFACE}}}, "no input, output or state.* 'z'"),
        ({"hardware_constraints": {"free": {"x": BUFFER}}}, "x.alignments has 2 numbers.* takes 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    prepared: Prepared, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=message):
        export(prepared, tmp_path / "m.aimodel", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"static_shapes": {"step": {"a b": {"x": [6, 8]}}}},
        {"static_shapes": {"step": {"a": {"x": [0, 8]}}}},
        {"hardware_constraints": {"free": {"x": {**SURFACE, "allocation": "disk"}}}},
        {"hardware_constraints": {"free": {"x": {"allocation": "Heap"}}}},
        {"minimum_os": "v26"},
    ],
)
def test_values_are_checked(prepared: Prepared, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PluginOptionsError, match=next(iter(options))):
        export(prepared, tmp_path / "m.aimodel", **options)
