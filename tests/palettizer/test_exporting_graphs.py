"""Models of which somebody has traced a graph, given to `export`."""

from __future__ import annotations

import pytest
import torch
from palettizer_models import weight_config
from torch import nn

from palette_core import KMeansPalettizer
from palette_core.errors import BackendError, StateError
from palette_core.storage.traced_weights import traces_weights

X = torch.linspace(-1, 1, 32).reshape(4, 8)


def graph(model: nn.Module) -> nn.Module:
    made: nn.Module = torch.export.export(model.eval(), (X,)).module()
    return made


def finalized() -> tuple[KMeansPalettizer, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    palettizer = KMeansPalettizer(model, weight_config(n_bits=2))
    palettizer.prepare((X,))
    return palettizer, palettizer.finalize(backend="packed")


def test_graphs_of_finalized_models_are_told_from_others() -> None:
    palettizer, model = finalized()
    assert traces_weights(graph(model))
    assert traces_weights(nn.Sequential(graph(model)))
    assert not traces_weights(model)  # its palettes show it
    palettizer.dequantize()
    assert not traces_weights(graph(model))


def test_a_graph_is_no_checkpoint(tmp_path) -> None:
    palettizer, model = finalized()
    with pytest.raises(BackendError, match="palettes as modules"):
        palettizer.export(tmp_path / "m.safetensors", model=graph(model))
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:a prepared model is being exported")
@pytest.mark.parametrize("prepared", [False, True])
def test_graphs_of_other_models_are_refused(prepared, tmp_path) -> None:
    palettizer = KMeansPalettizer(nn.Sequential(nn.Linear(8, 8)), weight_config(n_bits=2))
    model = palettizer.prepare((X,)) if prepared else nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(StateError, match="prepared before export"):
        palettizer.export(tmp_path / "m.safetensors", model=graph(model))
