"""Buffers that a model writes to, as states of a package, with a dynamic number of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mil_evaluator import Package
from torch import Tensor, nn

from palette_core import KMeansPalettizer

SIZE = 16
TOKENS = torch.export.Dim("tokens", min=1, max=8)


def by_index(cache: Tensor, x: Tensor, places: Tensor) -> None:
    cache[:, :, places] = x


def by_scatter(cache: Tensor, x: Tensor, places: Tensor) -> None:
    cache.scatter_(2, places[None, None, :, None].expand(x.shape), x)


def by_moving_up(cache: Tensor, x: Tensor, places: Tensor) -> None:
    del places
    cache.copy_(torch.cat((cache[:, :, x.shape[2] :], x), 2))


class Writes(nn.Module):
    """A layer whose results are kept."""

    def __init__(self, way) -> None:
        super().__init__()
        self.way, self.layer = way, nn.Linear(8, 8)
        self.register_buffer("cache", torch.zeros(1, 2, SIZE, 8))

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        self.way(self.cache, self.layer(x), places)
        return self.cache * 2


class Shares(nn.Module):
    """Two layers that write to one cache, which hangs in both."""

    def __init__(self, way) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Writes(way) for _ in range(2))
        self.layers[1].cache = self.layers[0].cache

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x, places)[:, :, :3], places + 4)


@pytest.mark.parametrize(
    ("kind", "way", "dynamic"),
    [
        (Writes, by_index, False),
        (Writes, by_index, True),
        (Writes, by_scatter, True),
        (Writes, by_moving_up, True),
        (Shares, by_index, False),
    ],
)
def test_states_are_written_as_buffers_are(tmp_path, kind, way, dynamic):
    torch.manual_seed(0)
    model = kind(way).eval()
    inputs = torch.randn(1, 2, 3, 8), torch.tensor([2, 3, 4])
    palettizer = KMeansPalettizer(model)
    palettizer.prepare(inputs)
    package = Package(
        palettizer.export(
            tmp_path / "model.mlpackage",
            inputs,
            backend="coreml",
            dynamic_shapes={"x": {2: TOKENS}, "places": {0: TOKENS}} if dynamic else None,
            backend_options={"compute_precision": "float32"},
        )
    )
    for count, first in ((3, 0), (1, 3), (8, 4), (2, 14)) if dynamic else ((3, 0), (3, 9)):
        x, places = torch.randn(1, 2, count, 8), torch.arange(first, first + count)
        (found,) = package({"x": x.numpy(), "places": places.int().numpy()}).values()
        with torch.no_grad():
            wanted = model(x, places).numpy()
        np.testing.assert_allclose(found, wanted, atol=4e-3)  # states are float16
