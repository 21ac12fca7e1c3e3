"""Buffers that a model writes to, as states of Core AI's runtime, with a dynamic number of rows."""

from __future__ import annotations

import asyncio

import coreai_support as support
import numpy as np
import pytest
import torch
from coreai.authoring import AIModelAsset
from coreai.runtime import NDArray
from torch import Tensor, nn

from palette_core import PalettizationSpec

SIZE = 16
TOKENS = torch.export.Dim("tokens", min=1, max=8)


def by_index_copy(cache: Tensor, x: Tensor, places: Tensor) -> None:
    cache.index_copy_(2, places, x)


def by_index(cache: Tensor, x: Tensor, places: Tensor) -> None:
    cache[:, :, places] = x


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


async def compare(path, model, pieces) -> None:
    """Run a file and the model on ``(count, first)`` rows; both write to their caches."""
    state = {"kept": NDArray(np.zeros((1, 2, SIZE, 8), np.float32))}
    async with AIModelAsset.load(path).executable() as loaded:
        function = loaded.load_function("main")
        for count, first in pieces:
            x, places = torch.randn(1, 2, count, 8), torch.arange(first, first + count)
            given = {"x": NDArray(x.numpy()), "places": NDArray(places.int().numpy())}
            found = np.array((await function(inputs=given, state=state))["y"].numpy())
            with torch.no_grad():
                wanted = model(x, places).numpy()
            np.testing.assert_allclose(found, wanted, atol=1e-5)
            np.testing.assert_allclose(state["kept"].numpy(), wanted / 2, atol=1e-5)


@pytest.mark.parametrize("way", [by_index_copy, by_index, by_moving_up])
def test_states_are_written_as_buffers_are(tmp_path, way):
    torch.manual_seed(0)
    model = Writes(way).eval()
    shapes = {"x": {2: TOKENS}, "places": {0: TOKENS}}
    path = support.exported(
        model,
        (torch.randn(1, 2, 3, 8), torch.tensor([2, 3, 4])),
        tmp_path / "model.aimodel",
        PalettizationSpec(n_bits=4),
        dynamic_shapes=shapes,
        backend_options={"state_names": ["kept"], "output_names": ["y"]},
    )

    asyncio.run(compare(path, model, ((3, 0), (1, 3), (8, 4), (2, 14))))


class Shares(nn.Module):
    """Two layers that write to one cache, which hangs in both."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Writes(by_index_copy) for _ in range(2))
        self.layers[1].cache = self.layers[0].cache

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x, places)[:, :, :3], places + 4)


def test_a_state_may_hang_in_two_modules(tmp_path):
    torch.manual_seed(0)
    model = Shares().eval()
    example = torch.randn(1, 2, 3, 8), torch.tensor([2, 3, 4])
    path = support.exported(
        model,
        example,
        tmp_path / "model.aimodel",
        PalettizationSpec(n_bits=4),
        backend_options={"state_names": ["kept"], "output_names": ["y"]},
    )

    asyncio.run(compare(path, model, ((3, 0), (3, 3), (3, 5))))
