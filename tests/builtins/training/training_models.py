"""Small models, ways to palettize them, and a loop that trains them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    PATSchedule,
    QuantizationSpec,
)
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.storage.sites import palette_sites

STRATEGIES = ("frozen", "ste", "tables", "dkm")
INT8 = QuantizationSpec(dtype="int8")
UINT8 = QuantizationSpec(dtype="uint8", qscheme="asymmetric")
E4M3 = QuantizationSpec(dtype="float8_e4m3fn")
SPECS: dict[str, dict[str, Any]] = {
    "scalar": {},
    "vector": {"cluster_dim": 2},
    "grouped": {"granularity": {"type": "per_grouped_channel", "group_size": 4}},
    "int8": {"lut_qspec": INT8},
    "uint8": {"lut_qspec": UINT8},
    "e4m3": {"lut_qspec": E4M3},
    "channel scale": {"enable_per_channel_scale": True},
    "all at once": {
        "cluster_dim": 2,
        "lut_qspec": UINT8,
        "enable_per_channel_scale": True,
        "granularity": {"type": "per_grouped_channel", "axis": 0, "group_size": 4},
    },
}
INPUTS = (torch.sin(torch.arange(128.0)).reshape(4, 2, 4, 4),)


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def config(*, start: int | None = None, **spec: Any) -> KMeansPalettizerConfig:
    spec = {"n_bits": 2, **spec}
    return KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": PalettizationSpec(**spec)},
            enable_fast_kmeans_mode=False,
            pat_schedule=None if start is None else PATSchedule(enable_fake_palettize=start),
        )
    )


def prepared(
    make: Callable[[], nn.Module] = convnet, inputs: Any = INPUTS, **spec: Any
) -> tuple[KMeansPalettizer, nn.Module]:
    palettizer = KMeansPalettizer(make(), config(**spec))
    return palettizer, palettizer.prepare(inputs).eval()


def items(model: nn.Module) -> list[PalettizedWeight]:
    return [site.palette for site in palette_sites(model, PalettizedWeight)]


def adam(model: nn.Module, rate: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=rate)


def train(
    palettizer: KMeansPalettizer,
    model: nn.Module,
    steps: int,
    optimizer: torch.optim.Optimizer | None = None,
    inputs: Any = INPUTS,
) -> list[float]:
    """Pull the outputs towards a fixed target; returns the losses."""
    optimizer = optimizer or adam(model)
    losses = []
    with palettizer.training_mode(model):
        for _ in range(steps):
            loss = loss_of(model, inputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            palettizer.step()
            losses.append(loss.item())
    return losses


def loss_of(model: nn.Module, inputs: Any = INPUTS) -> Tensor:
    out = model(*inputs)
    return (out - torch.cos(torch.arange(float(out.numel()))).reshape(out.shape)).square().mean()


def values(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same_values(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
