"""Parts of a model in files of their own: the chain of files returns what the model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino_support as support
import pytest
import torch

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.errors import PaletteWarning
from palette_core.testing.chains import Chain, run_chain

IDS, SCALE = Chain.ids, Chain.scale


def run(path: Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    return support.run_file(path, *inputs)


def test_the_chain_of_files_returns_what_the_model_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig.presets.w4_all())
    palettizer.prepare((IDS, SCALE))
    parts: dict[str, Any] = {
        "embeddings": "embed",
        "body": ["layers[:2]", "layers.2", "norm"],
        "head": "head",
    }
    with pytest.warns(PaletteWarning, match="1 copy more than in one file"):
        folder = palettizer.export(
            tmp_path / "parts", (IDS, SCALE), backend="openvino", parts=parts
        )  # fmt: skip
    results = run_chain(folder, {"ids": IDS.numpy(), "scale": SCALE.numpy()}, run)
    with torch.no_grad():
        wanted = model(IDS, SCALE).numpy()
    np.testing.assert_allclose(results["head"][0], wanted, atol=1e-4)
