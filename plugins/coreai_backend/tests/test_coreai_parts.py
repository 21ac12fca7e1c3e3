"""Parts of a model in files of their own: the chain of files returns what the model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import coreai_support as support
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from palette_core import ExportPart, KMeansPalettizer, KMeansPalettizerConfig
from palette_core.errors import PaletteWarning

IDS, SCALE = torch.tensor([3, 1, 4, 1], dtype=torch.int32), torch.linspace(0.5, 1.5, 4)[:, None]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu() * scale)


class Whole(nn.Module):
    """A tied embedding, layers in a list, and an argument that all of them take."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 64)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 256, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, scale=scale)
        return self.head(self.norm(x))


def run(path: Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    return support.run_file(path, *map(torch.from_numpy, inputs))


def test_the_chain_of_files_returns_what_the_model_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Whole().eval()
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig.presets.w4_all())
    palettizer.prepare((IDS, SCALE))
    parts: dict[str, Any] = {
        "embeddings": "embed",
        "body": ["layers[:2]", "layers.2", "norm"],
        "head": ExportPart("head", input_names="hidden", output_names="logits"),
    }
    with pytest.warns(PaletteWarning, match="1 copy more than in one file"):
        folder = palettizer.export(
            tmp_path / "parts", (IDS, SCALE), backend="coreai", parts=parts, metadata={"step": "1"}
        )  # fmt: skip
    told = json.loads((folder / "parts.json").read_text())
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        ["parts.json", *(name for part in told["parts"] for name in part["files"])]
    )
    results: dict[str, list[np.ndarray]] = {}
    given = {"ids": IDS.numpy(), "scale": SCALE.numpy()}
    for part in told["parts"]:
        inputs = []
        for each in part["inputs"]:
            source = each["from"]
            model_input = "model" in source
            found = given[source["model"]] if model_input else results[source["part"]][0]
            inputs.append(found)
        results[part["name"]] = run(folder / part["files"][0], inputs)
    with torch.no_grad():
        wanted = model(IDS, SCALE).numpy()
    np.testing.assert_allclose(results["head"][0], wanted, atol=1e-4)
