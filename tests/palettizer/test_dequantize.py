"""Folding into plain dense weights: ``finalize(backend="torch")`` and ``dequantize``."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from palettizer_models import (
    EVERYTHING_INPUTS,
    MLP_INPUTS,
    everything_prepared,
    mlp,
    prepared_mlp,
    weight_config,
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from palette_core import (
    ExportBackend,
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    load_checkpoint,
)
from palette_core.errors import BackendError, StateError
from palette_core.storage import palette_sites

pytestmark = pytest.mark.filterwarnings("ignore::palette_core.errors.PaletteWarning")


def is_plain(model: nn.Module) -> bool:
    classes = not any(type(m).__name__.startswith("Parametrized") for m in model.modules())
    return classes and not any(parametrize.is_parametrized(m) for m in model.modules())


@pytest.mark.parametrize("packed", [False, True], ids=["prepared", "finalized"])
def test_every_kind_of_layer_is_plain_again_and_computes_the_same(packed: bool) -> None:
    palettizer, model = everything_prepared()
    dense = {name: value.shape for name, value in type(model)().state_dict().items()}
    with torch.no_grad():
        expected = model.eval()(*EVERYTHING_INPUTS)
    if packed:
        model = palettizer.finalize(backend="packed")
    weights = {site.name: site.palette.palettized().decode() for site in palette_sites(model)}
    folded = palettizer.dequantize()
    assert all(torch.equal(folded.state_dict()[name], w) for name, w in weights.items())
    assert folded is model
    assert is_plain(folded)
    assert {name: value.shape for name, value in folded.state_dict().items()} == dense
    with torch.no_grad():
        # torch takes faster ways through plain layers, which round otherwise.
        assert torch.allclose(folded(*EVERYTHING_INPUTS), expected, atol=1e-6)
    assert all(p.requires_grad for p in folded.parameters())
    fresh = type(model)()
    fresh.load_state_dict(folded.state_dict())
    with torch.no_grad():
        assert torch.allclose(fresh.eval()(*EVERYTHING_INPUTS), expected, atol=1e-6)


def test_keys_gradients_and_order_are_those_of_the_dense_model() -> None:
    model = mlp()
    keys = list(model.state_dict())
    model[0].weight.requires_grad_(False)
    asked = [p.requires_grad for p in model.parameters()]
    palettizer = KMeansPalettizer(model, weight_config(n_bits=2))
    palettizer.prepare(MLP_INPUTS)
    final = palettizer.finalize(backend=ExportBackend.Torch)
    assert list(final.state_dict()) == keys
    assert [p.requires_grad for p in final.parameters()] == asked
    assert len(final[0].weight.unique()) <= 4
    final[2].weight.sum().backward()  # a leaf of its own
    assert final[2].weight.grad is not None


def test_a_folded_model_is_calibrated_and_prepared_again() -> None:
    palettizer, model = prepared_mlp()
    palettizer.finalize(backend="torch")
    with pytest.raises(StateError, match="must be prepared before dequantize"):
        palettizer.dequantize()
    again = KMeansPalettizer(model, weight_config(n_bits=1))
    again.calibrate([MLP_INPUTS])
    again.prepare(MLP_INPUTS)
    assert len(model[0].weight.unique()) <= 2
    assert is_plain(again.dequantize())


def test_a_model_without_palettes_can_be_prepared_after_it() -> None:
    model = mlp()
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(global_config=None))
    palettizer.prepare(MLP_INPUTS)
    palettizer.dequantize()
    palettizer.calibrate([MLP_INPUTS])


def test_tied_recurrent_pruned_and_normed_weights() -> None:
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(16, 8)
            self.memory = nn.LSTM(8, 8, num_layers=2)
            self.pruned = prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5)
            self.normed = parametrizations.weight_norm(nn.Linear(8, 8))
            self.out = nn.Linear(8, 16, bias=False)
            self.out.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            found, _ = self.memory(self.table(ids))
            return self.out(self.normed(self.pruned(found)))

    model, inputs = Tied().eval(), (torch.arange(12).reshape(3, 4),)
    names = list(dict(model.memory.named_parameters()))
    config = weight_config(n_bits=3)
    states = {name: PalettizationSpec(n_bits=3) for name in names if "weight" in name}
    config.set_module_type(nn.LSTM, ModuleKMeansPalettizerConfig(op_state_spec=states))
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare(inputs)
    assert len(palette_sites(model)) == 7
    with torch.no_grad():
        expected = model(*inputs)
    copied = palettizer.dequantize(copy.deepcopy(model))
    for folded in (copied, palettizer.dequantize()):
        assert is_plain(folded)
        assert folded.out.weight is folded.table.weight
        assert sorted(dict(folded.memory.named_parameters())) == sorted(names)
        with torch.no_grad():
            assert torch.equal(folded(*inputs), expected)
            folded.memory.weight_hh_l1.zero_()  # the layer reads what can be changed
            assert not torch.equal(folded(*inputs), expected)
    assert folded.memory._flat_weights[0] is folded.memory.weight_ih_l0
    assert copied.memory.weight_ih_l0 is not model.memory.weight_ih_l0


def test_palettes_that_share_a_layer_with_other_parametrizations_leave_those_alone() -> None:
    layer = nn.MultiheadAttention(8, 2)
    parametrize.register_parametrization(layer, "in_proj_bias", nn.Tanh())
    x = torch.randn(3, 1, 8)
    palettizer = KMeansPalettizer(layer.eval(), weight_config(n_bits=2))
    palettizer.prepare((x, x, x))
    with torch.no_grad():
        expected = layer(x, x, x)[0]
        palettizer.dequantize()
        assert not palette_sites(layer)
        assert parametrize.is_parametrized(layer, "in_proj_bias")
        assert not parametrize.is_parametrized(layer, "in_proj_weight")
        assert torch.equal(layer(x, x, x)[0], expected)
        copied = copy.deepcopy(layer)
        assert torch.equal(copied(x, x, x)[0], expected)


def test_weights_of_a_checkpoint_and_of_mapped_files_fold(tmp_path: Path) -> None:
    palettizer, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    path = palettizer.export(
        tmp_path / "m.safetensors", model=copy.deepcopy(model), backend="packed"
    )
    loaded = load_checkpoint(path, mlp())
    KMeansPalettizer(loaded).dequantize()
    assert is_plain(loaded)
    assert all(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded(*MLP_INPUTS), expected)
    palettizer.finalize(backend="packed", mmap_dir=tmp_path / "maps")
    palettizer.dequantize()
    for file in (tmp_path / "maps").iterdir():
        file.unlink()
    assert torch.equal(model(*MLP_INPUTS), expected)


@pytest.mark.parametrize("state", ["prepared", "finalized", "folded"])
def test_the_file_is_the_dense_state_dict(state: str, tmp_path: Path) -> None:
    palettizer, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    if state == "finalized":
        palettizer.finalize(backend="packed")
        before = list(model.state_dict())
    if state == "folded":
        palettizer.dequantize()
        with pytest.raises(StateError):
            palettizer.export(tmp_path / "m.pt", backend="torch")
        return
    path = palettizer.export(tmp_path / "m.pt", backend="torch")
    fresh = mlp()
    fresh.load_state_dict(torch.load(path))
    assert torch.equal(fresh(*MLP_INPUTS), expected)
    if state == "finalized":
        assert list(model.state_dict()) == before
    with pytest.raises(BackendError, match="leave dynamic_shapes out"):
        palettizer.export(path, model=prepared_mlp()[1], backend="torch", dynamic_shapes={})


def test_mapping_files_is_refused(tmp_path: Path) -> None:
    palettizer, _ = prepared_mlp()
    with pytest.raises(BackendError, match="mmap_dir is not supported by backend 'torch'"):
        palettizer.finalize(backend="torch", mmap_dir=tmp_path)
    assert palettizer.finalize(backend="torch") is not None


def test_a_failure_leaves_the_model_finalized(monkeypatch: pytest.MonkeyPatch) -> None:
    from palette_core.storage import folding

    palettizer, model = prepared_mlp()
    expected = palettizer.finalize(backend="packed")(*MLP_INPUTS)
    keys, done = list(model.state_dict()), []

    def fails(*args: object) -> None:
        if done:
            raise MemoryError
        done.append(folding_detach(*args))

    folding_detach = folding.detach
    monkeypatch.setattr(folding, "detach", fails)
    with pytest.raises(MemoryError):
        palettizer.dequantize()
    assert list(model.state_dict()) == keys
    assert torch.equal(model(*MLP_INPUTS), expected)
