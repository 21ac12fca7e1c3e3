"""Sparse weights in OpenVINO models: exact, zero where they were, and small in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino_support as support
import pytest
import torch
from torch import Tensor, nn

from openvino_backend import read_weights
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
)

ROWS = PerGroupedChannelGranularity(axis=0, group_size=4)
COLUMNS = PerGroupedChannelGranularity(axis=1, group_size=8)
SPARSE = {"sparsity_detection_threshold": 0.3, "stored_form": "sparse"}
UINT8 = {"dtype": "uint8", "qscheme": "asymmetric"}
SPECS: dict[str, dict[str, Any]] = {
    **{f"{bits} bits": {"n_bits": bits} for bits in (1, 3, 4, 6, 8)},
    "rows": {"granularity": ROWS},
    "columns": {"granularity": COLUMNS, "enable_per_channel_scale": True},
    "int8": {"granularity": ROWS, "lut_qspec": {"dtype": "int8"}},
    "affine": {"granularity": COLUMNS, "lut_qspec": UINT8},
    "pairs": {"cluster_dim": 2},
    "fours in rows": {"cluster_dim": 4, "granularity": ROWS},
    "pairs in columns": {"cluster_dim": 2, "granularity": COLUMNS},
}


class Layers(nn.Module):
    """A linear layer for each spec, a convolution, and an embedding tied to a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.ModuleList(nn.Linear(32, 16, bias=False) for _ in SPECS)
        self.conv = nn.Conv2d(8, 16, 3, bias=False)
        self.embed, self.head = nn.Embedding(16, 32), nn.Linear(32, 16, bias=False)
        self.head.weight = self.embed.weight
        with torch.no_grad():
            for weight in self.parameters():
                weight[torch.rand(weight.shape) < 0.6] = 0.0
                weight[4:8] = 0.0

    def forward(self, x: Tensor, image: Tensor, tokens: Tensor) -> Any:
        made = [layer(x) for layer in self.linear]
        return (*made, self.conv(image), self.embed(tokens), self.head(x))


def rule(*op_types: str, **spec: Any) -> ModuleKMeansPalettizerConfig:
    made = PalettizationSpec(**{"n_bits": 2, **SPARSE, **spec})
    other = OpKMeansPalettizerConfig(op_state_spec={"*": made})
    return ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": made},
        op_type_config=dict.fromkeys(op_types, other),
        enable_fast_kmeans_mode=False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_kind_is_exact_and_zero_where_it_was(dtype: torch.dtype, tmp_path: Path) -> None:
    model, dense = Layers().eval().to(dtype), Layers().eval().to(dtype)
    named = {rf"linear\.{at}": rule(**spec) for at, spec in enumerate(SPECS.values())}
    config = KMeansPalettizerConfig(global_config=rule("embedding"), module_name_configs=named)
    inputs = (torch.eye(32, dtype=dtype), torch.ones((1, 8, 4, 4), dtype=dtype), torch.arange(16))
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare(inputs, backend="openvino")
    palettes = support.palettes(model)
    path = palettizer.export(tmp_path / "m.xml", inputs, backend="openvino")
    read = read_weights(path)
    assert set(read) == set(palettes)
    assert len(palettes) == len(SPECS) + 2
    for name, palette in palettes.items():
        assert palette.mask is not None, name
        assert np.array_equal(read[name], palette.decode().numpy()), name
        before = dense.get_parameter(name).detach().numpy()
        assert np.array_equal(read[name] == 0, before == 0), name
    found = support.run_file(path, *inputs)
    for at in range(len(SPECS)):
        assert np.array_equal(found[at].T, read[f"linear.{at}.weight"])
    assert np.array_equal(found[-2], read["embed.weight"])
    assert np.array_equal(found[-1].T, read["embed.weight"])
    with torch.no_grad():
        assert support.difference(found, model(*inputs)) < (1e-5 if dtype.itemsize == 4 else 1e-2)


@pytest.mark.parametrize(("zeros", "n_bits", "dim"), [(0.5, 4, 1), (0.9, 3, 1), (0.5, 4, 2)])
def test_the_file_is_as_large_as_indices_mask_and_tables(
    zeros: float, n_bits: int, dim: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256, bias=False)).eval()
    with torch.no_grad():
        model[0].weight[torch.rand(256, 256) < zeros] = 0.0
    config = KMeansPalettizerConfig(global_config=rule(n_bits=n_bits, cluster_dim=dim))
    palettizer, x = KMeansPalettizer(model, config), (torch.ones(1, 256),)
    palettizer.prepare(x)
    ideal = support.palettes(model)["0.weight"].size_in_bits() / 8
    path = palettizer.export(tmp_path / "m.xml", x, backend="openvino")
    assert ideal < path.with_suffix(".bin").stat().st_size < ideal + 256
