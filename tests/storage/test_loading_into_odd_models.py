"""Checkpoints and models with hooks, tensors on the meta device, ties of their own, extra state."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from palette_core import KMeansPalettizer, load_checkpoint, read_checkpoint, save_checkpoint
from palette_core.errors import CheckpointError
from palette_core.storage import write_checkpoint

X = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(1))


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 8, 3, padding=1)
    ).eval()


def old_norm() -> nn.Module:
    model = base()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        weight_norm(model[0])
        weight_norm(model[2], dim=None)
    return model


def new_norm() -> nn.Module:
    model = base()
    parametrizations.weight_norm(model[0])
    return model


def pruned() -> nn.Module:
    model = base()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def pruned_twice() -> nn.Module:
    model = pruned()
    prune.l1_unstructured(model[0], "weight", amount=0.2)
    prune.l1_unstructured(model[0], "bias", amount=0.5)
    return model


def tied_norm() -> nn.Module:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = old_norm()
            self.two = self.one

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    return Twice().eval()


def prepared(model: nn.Module, x: Tensor = X) -> KMeansPalettizer:
    palettizer = KMeansPalettizer(model, None)
    palettizer.prepare((x,), show_progress=False)
    return palettizer


FACTORIES = [base, old_norm, new_norm, pruned, pruned_twice, tied_norm]


@pytest.mark.parametrize("finalized", [False, True])
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_file_loads_into_the_factory_that_it_came_from(
    factory: Callable[[], nn.Module], finalized: bool, tmp_path: Path
) -> None:
    palettizer = prepared(factory())
    model = palettizer.finalize(backend="packed") if finalized else palettizer._model
    path = save_checkpoint(model, tmp_path / "m")
    loaded = load_checkpoint(path, factory())
    assert torch.equal(loaded(X), model(X))
    again = load_checkpoint(save_checkpoint(loaded, tmp_path / "again"), factory())
    assert torch.equal(again(X), model(X))


@pytest.mark.parametrize("factory", [old_norm, pruned_twice])
def test_a_file_of_a_hooked_model_loads_into_a_plain_one_where_it_can(
    factory: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = prepared(factory())._model
    path = save_checkpoint(model, tmp_path / "m")
    if factory is old_norm:
        assert torch.equal(load_checkpoint(path, base())(X), model(X))
    else:
        with pytest.raises(CheckpointError, match=r"the model has no 0\.bias_mask"):
            load_checkpoint(path, base())


@pytest.mark.parametrize("factory", FACTORIES)
def test_hooks_are_there_again_where_loading_fails(
    factory: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_checkpoint(prepared(factory())._model, tmp_path / "m")
    model = factory()
    before, keys = model(X), list(model.state_dict())
    calls = iter([None, KeyboardInterrupt()])

    def fail(*args: Any) -> None:
        if (error := next(calls)) is not None:
            raise error
        real(*args)

    from palette_core.storage import model_checkpoints

    real = model_checkpoints.install_packed
    monkeypatch.setattr(model_checkpoints, "install_packed", fail)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(path, model)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(X), before)


# --- the meta device ----------------------------------------------------------------------------


class Rotary(nn.Module):
    """A layer with a tied weight, a normalisation, and what no state dictionary has."""

    def __init__(self, *, extra: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight
        self.norm, self.again = nn.LayerNorm(8), nn.LayerNorm(8)
        self.again.weight = self.norm.weight
        self.rnn = nn.GRU(8, 8)
        self.bn = nn.BatchNorm1d(8)
        if extra == "buffer":
            self.register_buffer("inv_freq", torch.arange(8.0), persistent=False)
        if extra == "attribute":
            self.scale = torch.full((8,), 2.0)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.rnn(self.again(self.norm(self.embed(ids))))[0]
        x = self.bn(x * getattr(self, "inv_freq", 1.0) * getattr(self, "scale", 1.0))
        return self.head(x)


IDS = torch.arange(6)


def on_meta(factory: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return factory().eval()


@pytest.fixture
def rotary_file(tmp_path: Path) -> tuple[Path, Tensor]:
    model = prepared(Rotary().eval(), IDS)._model
    model.norm.weight.requires_grad_(False).fill_(3.0)
    return save_checkpoint(model, tmp_path / "m"), model(IDS)


def test_a_model_on_the_meta_device_is_filled_whole(rotary_file: tuple[Path, Tensor]) -> None:
    path, wanted = rotary_file
    model = on_meta(Rotary)
    model.norm.weight.requires_grad_(False)
    loaded = load_checkpoint(path, model)
    states = [*loaded.named_parameters(), *loaded.named_buffers()]
    assert {tensor.device.type for _, tensor in states} == {"cpu"}
    assert torch.equal(loaded(IDS), wanted)
    assert loaded.again.weight is loaded.norm.weight
    assert not loaded.norm.weight.requires_grad
    assert loaded.norm.bias.requires_grad
    assert isinstance(loaded.rnn.bias_hh_l0, nn.Parameter)


@pytest.mark.parametrize("factory", [old_norm, new_norm, pruned])
def test_computed_weights_on_the_meta_device_are_filled(
    factory: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = prepared(factory())._model
    path = save_checkpoint(model, tmp_path / "m")
    assert torch.equal(load_checkpoint(path, on_meta(factory))(X), model(X))


def test_parts_on_the_meta_device_are_filled(rotary_file: tuple[Path, Tensor]) -> None:
    path, wanted = rotary_file
    model = Rotary().eval()
    model.rnn.to("meta")
    model.bn.to("meta")
    assert torch.equal(load_checkpoint(path, model)(IDS), wanted)


@pytest.mark.parametrize(("extra", "name"), [("buffer", "inv_freq"), ("attribute", "scale")])
def test_what_no_file_could_fill_is_refused_by_name(
    extra: str, name: str, rotary_file: tuple[Path, Tensor]
) -> None:
    path, wanted = rotary_file
    model = on_meta(lambda: Rotary(extra=extra))
    with pytest.raises(CheckpointError, match=f"{name} is on the meta device and not in the file"):
        load_checkpoint(path, model)
    assert model.embed.weight.is_meta
    assert model.norm.weight.is_meta
    # As init_empty_weights of accelerate does: parameters without memory, all else with.
    setattr(model, name, torch.ones(8))
    assert torch.equal(load_checkpoint(path, model)(IDS), wanted)


def test_a_model_on_the_meta_device_is_as_it_was_where_loading_fails(
    rotary_file: tuple[Path, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from palette_core.storage import model_checkpoints

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_checkpoints, "install_packed", fail)
    model = on_meta(Rotary)
    before = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(rotary_file[0], model)
    after = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert all(weight.is_meta for weight in model.rnn._flat_weights)


def test_a_model_on_the_meta_device_is_not_saved(rotary_file: tuple[Path, Tensor]) -> None:
    loaded = load_checkpoint(rotary_file[0], Rotary())
    loaded.norm.to("meta")
    with pytest.raises(CheckpointError, match=r"norm\.weight is on the meta device"):
        save_checkpoint(loaded, rotary_file[0].with_name("other"))
    assert not rotary_file[0].with_name("other").exists()


# --- ties ---------------------------------------------------------------------------------------


def test_tensors_that_only_the_model_ties_are_refused(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.n, self.m = nn.LayerNorm(8), nn.LayerNorm(8)
            if tied:
                self.b.weight, self.m.weight = self.a.weight, self.n.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.m(self.n(self.b(self.a(x))))

    x = torch.ones(1, 8)
    untied = prepared(Pair(tied=False), x)._model
    path = save_checkpoint(untied, tmp_path / "m")
    message = r"a\.weight and b\.weight are one tensor in the model, and two in the file$"
    with pytest.raises(CheckpointError, match=message):  # of the norms both have equal values
        load_checkpoint(path, Pair(tied=True))
    tied = prepared(Pair(tied=True), x)._model
    path = save_checkpoint(tied, tmp_path / "tied")
    assert torch.equal(load_checkpoint(path, Pair(tied=False))(x), tied(x))


# --- extra state --------------------------------------------------------------------------------


class Extra(nn.Linear):
    """A layer that keeps something beside its tensors."""

    def __init__(self, state: Any = None) -> None:
        super().__init__(8, 4)
        self.kept = state

    def get_extra_state(self) -> Any:
        return self.kept

    def set_extra_state(self, state: Any) -> None:
        self.kept = state


VALUES = [None, 3, "text", {"calls": 3, "names": ["a", {"b": [1.5, False]}]}, 2**60]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_extra_state_is_kept(value: Any, tmp_path: Path) -> None:
    model = prepared(nn.Sequential(Extra(value)), torch.ones(1, 8))._model
    path = save_checkpoint(model, tmp_path / "m")
    loaded = load_checkpoint(path, nn.Sequential(Extra("before")))
    assert loaded[0].kept == value
    assert type(loaded[0].kept) is type(value)
    content = read_checkpoint(path)
    assert content.values == {"0._extra_state": value}
    again = write_checkpoint(
        tmp_path / "again", content.palettized, content.dense, values=content.values
    )
    assert read_checkpoint(again).values == content.values


def test_extra_state_that_is_a_tensor_is_kept(tmp_path: Path) -> None:
    model = prepared(nn.Sequential(Extra(torch.arange(3))), torch.ones(1, 8))._model
    path = save_checkpoint(model, tmp_path / "m")
    loaded = load_checkpoint(path, nn.Sequential(Extra(torch.zeros(3, dtype=torch.long))))
    assert torch.equal(loaded[0].kept, torch.arange(3))


@pytest.mark.parametrize(
    "value", [(1, 2), {1: 2}, b"x", float("nan"), {3}, torch.float32, object(), [torch.ones(1)]]
)
def test_extra_state_that_cannot_be_kept_is_refused(value: Any, tmp_path: Path) -> None:
    model = prepared(nn.Sequential(Extra(value)), torch.ones(1, 8))._model
    message = rf"0\._extra_state is a {type(value).__name__} that no checkpoint can hold"
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_file_without_extra_state_that_the_model_has_is_refused(tmp_path: Path) -> None:
    def plain() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 4))

    bare = save_checkpoint(prepared(plain(), torch.ones(1, 8))._model, tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"the file lacks 0\._extra_state"):
        load_checkpoint(bare, nn.Sequential(Extra()))
    extra = prepared(nn.Sequential(Extra(3)), torch.ones(1, 8))._model
    path = save_checkpoint(extra, tmp_path / "extra")
    with pytest.raises(CheckpointError, match=r"the model has no 0\._extra_state"):
        load_checkpoint(path, plain())


def test_extra_state_is_as_it_was_where_loading_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palette_core.storage import model_checkpoints

    path = save_checkpoint(
        prepared(nn.Sequential(Extra(3)), torch.ones(1, 8))._model, tmp_path / "m"
    )

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_checkpoints, "install_packed", fail)
    model = nn.Sequential(Extra({"mine": [1]}))
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(path, model)
    assert model[0].kept == {"mine": [1]}
