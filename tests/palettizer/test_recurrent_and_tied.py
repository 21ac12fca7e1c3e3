"""Recurrent layers really compute with the palette; tied weights stay one weight."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from palettizer_models import TOKENS, Tied, decoded_weights, overwritten, weight_config
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    load_checkpoint,
    save_checkpoint,
)
from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
from palette_core.storage.sites import palette_sites
from palette_core.tensors import products

RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(6, 4),
    "LSTM, two layers, both ways, projected": lambda: nn.LSTM(
        6, 4, num_layers=2, bidirectional=True, proj_size=3
    ),
    "LSTM, no bias": lambda: nn.LSTM(6, 4, bias=False),
    "GRU": lambda: nn.GRU(6, 4, num_layers=2),
    "RNN": lambda: nn.RNN(6, 4, nonlinearity="relu"),
    "LSTMCell": lambda: nn.LSTMCell(6, 4),
    "GRUCell": lambda: nn.GRUCell(6, 4),
}
SEQUENCE = torch.sin(torch.arange(90.0)).reshape(5, 3, 6)
recurrent = pytest.mark.parametrize("kind", RECURRENT)
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


def made(kind: str) -> nn.Module:
    torch.manual_seed(3)
    return RECURRENT[kind]().eval()


def inputs_of(model: nn.Module) -> tuple[torch.Tensor]:
    return (SEQUENCE[0],) if isinstance(model, nn.RNNCellBase) else (SEQUENCE,)


def output(model: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    out = model(*inputs)
    return out[0] if isinstance(out, tuple) else out


def prepared(kind: str) -> tuple[KMeansPalettizer, nn.Module, torch.Tensor]:
    """A palettized recurrent layer, and what a dense one with the decoded weights computes."""
    model = made(kind)
    config = KMeansPalettizerConfig(global_config=None)
    config.set_module_type(
        type(model),
        ModuleKMeansPalettizerConfig(op_state_spec={"*": PalettizationSpec(n_bits=2)}),
    )
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare(inputs_of(model))
    weights = decoded_weights(model)
    assert set(weights) == set(made(kind).state_dict())
    dense = overwritten(made(kind), weights)
    return palettizer, model, output(dense, inputs_of(dense))


@recurrent
def test_computes_with_the_palettized_weights(kind: str) -> None:
    palettizer, model, expected = prepared(kind)
    inputs = inputs_of(model)
    assert not torch.allclose(expected, output(made(kind), inputs), atol=1e-3)
    for form in (
        model,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        palettizer.finalize(copy.deepcopy(model), backend="packed"),
        copy.deepcopy(palettizer.finalize(copy.deepcopy(model), backend="packed")),
        copy.deepcopy(model).double().float(),
    ):
        torch.testing.assert_close(output(form, inputs), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(output(form.train(), inputs), expected, rtol=1e-5, atol=1e-6)


@recurrent
def test_a_changed_palette_changes_the_output(kind: str) -> None:
    _, model, expected = prepared(kind)
    with torch.no_grad():
        for site in palette_sites(model):
            site.palette.lut.mul_(2)
    now = output(model, inputs_of(model))
    dense = overwritten(made(kind), decoded_weights(model))
    torch.testing.assert_close(now, output(dense, inputs_of(dense)))
    assert not torch.allclose(now, expected, atol=1e-3)


@recurrent
def test_decodes_each_weight_once_in_a_call(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    palettizer, model, _ = prepared(kind)
    final = palettizer.finalize(backend="packed")
    calls: list[int] = []
    decode = products.decode
    monkeypatch.setattr(products, "decode", lambda stored: calls.append(1) or decode(stored))
    final(*inputs_of(model))
    assert len(calls) == sum(len(site.names) for site in palette_sites(final))


@recurrent
def test_loads_from_a_checkpoint(kind: str, tmp_path: Path) -> None:
    _, model, expected = prepared(kind)
    path = save_checkpoint(model, tmp_path / "r.safetensors")
    loaded = load_checkpoint(path, made(kind))
    torch.testing.assert_close(output(loaded, inputs_of(model)), expected)


@pytest.mark.filterwarnings("ignore:a prepared model is being exported")
@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_exports(kind: str) -> None:
    palettizer, model, expected = prepared(kind)
    inputs = inputs_of(model)
    for form in (model, palettizer.finalize(copy.deepcopy(model), backend="packed")):
        program = torch.export.export(form, inputs)
        torch.testing.assert_close(output(program.module(), inputs), expected)


# --- ties ---------------------------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    fit = KMeans1d.fit

    def counted(self: KMeans1d, problem: object) -> object:
        calls.append(1)
        return fit(self, problem)

    monkeypatch.setattr(KMeans1d, "fit", counted)
    return calls


def prepared_tied() -> tuple[KMeansPalettizer, Tied]:
    palettizer = KMeansPalettizer(Tied(), weight_config())
    return palettizer, palettizer.prepare(TOKENS)


def assert_tied(model: Tied) -> None:
    embed, head = model.embed.parametrizations.weight, model.head.parametrizations.weight
    assert embed[0] is head[0]
    assert embed.original is head.original
    assert torch.equal(model.embed.weight, model.head.weight)
    assert len(list(model.parameters())) == 3


def test_tied_weights_are_clustered_once(fits: list[int]) -> None:
    _, model = prepared_tied()
    assert len(fits) == 2  # the tied one, and the layer in the middle
    assert model.head.weight is model.embed.weight
    assert_tied(model)


def test_tied_weights_stay_tied_through_everything(tmp_path: Path) -> None:
    palettizer, model = prepared_tied()
    expected = model(*TOKENS)
    assert_tied(copy.deepcopy(model))
    assert_tied(pickle.loads(pickle.dumps(model)))
    assert_tied(model.half().float())
    expected = model(*TOKENS)
    path = save_checkpoint(model, tmp_path / "tied.safetensors")
    final = palettizer.finalize(backend="packed")
    assert_tied(final)
    assert_tied(copy.deepcopy(final))
    assert save_checkpoint(final, tmp_path / "2").read_bytes() == path.read_bytes()
    loaded = load_checkpoint(path, Tied())
    assert_tied(loaded)
    torch.testing.assert_close(loaded(*TOKENS), expected)


def test_one_module_in_two_places(tmp_path: Path) -> None:
    def shared() -> nn.Sequential:
        torch.manual_seed(0)
        layer = nn.Linear(8, 8)
        return nn.Sequential(layer, nn.Tanh(), layer)

    inputs = (torch.ones(2, 8),)
    palettizer = KMeansPalettizer(shared(), weight_config())
    model = palettizer.prepare(inputs)
    expected = model(*inputs)
    path = save_checkpoint(model, tmp_path / "shared.safetensors")
    loaded = load_checkpoint(path, shared())
    assert loaded[0] is loaded[2]
    torch.testing.assert_close(loaded(*inputs), expected)
    final = palettizer.finalize(backend="packed")
    assert final[0] is final[2]
    torch.testing.assert_close(final(*inputs), expected)
    assert save_checkpoint(final, tmp_path / "2").read_bytes() == path.read_bytes()
