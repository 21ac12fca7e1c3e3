"""Palette sites: each palette once, under every name, with what it receives."""

from __future__ import annotations

import torch
from palettizer_models import MLP_INPUTS, mlp
from torch import nn
from torch.nn.utils import parametrize

from palette_core import KMeansPalettizer
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.storage import PackedWeight, palette_sites


class Shared(nn.Module):
    """A tied weight, and a module that hangs in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.b.weight = self.a.weight
        self.again = self.c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.c(self.b(self.a(x))))


INPUTS = (torch.randn(2, 16, generator=torch.Generator().manual_seed(0)),)


def test_each_palette_comes_once_with_all_its_names() -> None:
    model = KMeansPalettizer(Shared().eval()).prepare(INPUTS)
    assert [site.names for site in palette_sites(model)] == [
        ("a.weight", "b.weight"),
        ("c.weight", "again.weight"),
    ]
    first, second = palette_sites(model)
    assert (first.name, first.module, first.state) == ("a.weight", model.a, "weight")
    assert [place.module for place in second.places] == [model.c, model.c]
    assert all(first.palette in list(place.chain) for place in first.places)


def test_a_model_without_palettes_has_no_sites() -> None:
    assert palette_sites(Shared()) == []


def test_sites_can_be_asked_for_by_the_type_of_palette() -> None:
    palettizer = KMeansPalettizer(mlp())
    model = palettizer.prepare(MLP_INPUTS)
    assert len(palette_sites(model, PalettizedWeight)) == 2
    assert palette_sites(model, PackedWeight) == []
    final = palettizer.finalize(backend="packed")
    assert palette_sites(final, PalettizedWeight) == []
    assert len(palette_sites(final, PackedWeight)) == 2


def test_dense_is_what_the_palette_receives() -> None:
    class Twice(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    model = mlp()
    plain = model[0].weight.detach().clone()
    parametrize.register_parametrization(model[2], "weight", Twice())
    computed = model[2].weight.detach().clone()
    first, second = palette_sites(KMeansPalettizer(model).prepare(MLP_INPUTS))
    assert torch.equal(first.dense(), plain)
    assert first.original is model[0].parametrizations.weight.original
    assert torch.equal(second.dense(), computed)
