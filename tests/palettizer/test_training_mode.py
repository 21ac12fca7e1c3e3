"""training_mode(), step() and PATSchedule."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from palettizer_models import (
    MLP_INPUTS,
    TOKENS,
    Tied,
    decoded_weights,
    mlp,
    prepared_mlp,
    weight_config,
)
from torch import nn

from palette_core import KMeansPalettizer, PATSchedule, bits_per_weight, save_checkpoint
from palette_core.errors import StateError, WeightError
from palette_core.storage.sites import palette_sites


def scheduled(start: int) -> tuple[KMeansPalettizer, nn.Module]:
    config = weight_config()
    config.global_config.pat_schedule = PATSchedule(enable_fake_palettize=start)
    palettizer = KMeansPalettizer(mlp(), config)
    return palettizer, palettizer.prepare(MLP_INPUTS).eval()


def train_step(palettizer: KMeansPalettizer, model: nn.Module, optimizer: object) -> set[str]:
    """One step of training; returns the parameters that got a gradient."""
    optimizer.zero_grad()  # type: ignore[attr-defined]
    model(*MLP_INPUTS).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()  # type: ignore[attr-defined]
    palettizer.step()
    return reached


def distinct(model: nn.Module) -> list[int]:
    return [len(model[at].weight.unique()) for at in (0, 2)]


# --- entering and leaving -----------------------------------------------------------------------


def test_yields_the_palettizer_and_restores_flags() -> None:
    palettizer, model = prepared_mlp()
    model[0].train()
    flags = {name: m.training for name, m in model.named_modules()}
    with palettizer.training_mode() as inside:
        assert inside is palettizer
        assert all(m.training for m in model.modules())
    assert {name: m.training for name, m in model.named_modules()} == flags


def test_flags_are_restored_after_an_error() -> None:
    palettizer, model = prepared_mlp()
    with pytest.raises(ZeroDivisionError), palettizer.training_mode():
        _ = 1 / 0
    assert not any(m.training for m in model.modules())
    with palettizer.training_mode():
        palettizer.step()


def test_unprepared_nested_and_outside() -> None:
    fresh = KMeansPalettizer(mlp())
    with pytest.raises(StateError, match="must be prepared before"), fresh.training_mode():
        pass
    with pytest.raises(StateError, match="inside a training_mode"):
        fresh.step()
    palettizer, _ = prepared_mlp()
    with palettizer.training_mode():
        with (
            pytest.raises(StateError, match=r"Cannot enter training_mode\(\) while .* training"),
            palettizer.training_mode(),
        ):
            pass
        palettizer.step()  # the outer one still runs
    with pytest.raises(StateError, match="inside a training_mode"):
        palettizer.step()


def test_a_finalized_model_has_nothing_to_train() -> None:
    palettizer, _ = prepared_mlp()
    palettizer.finalize(backend="packed")
    with pytest.raises(StateError, match="must be prepared before"), palettizer.training_mode():
        pass


def test_what_is_not_a_module() -> None:
    palettizer, _ = prepared_mlp()
    with (
        pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"),
        palettizer.training_mode(3),  # type: ignore[arg-type]
    ):
        pass


def test_a_copy_can_be_trained() -> None:
    palettizer, model = scheduled(1)
    twin = copy.deepcopy(model)
    with palettizer.training_mode(twin):
        assert twin.training
        assert not model.training
        assert distinct(twin) == [128, 64]
        assert distinct(model) == [4, 4]
        palettizer.step()
        assert distinct(twin) == [4, 4]


# --- schedules ----------------------------------------------------------------------------------


def test_without_a_schedule_palettes_hold_at_once() -> None:
    palettizer, model = prepared_mlp()
    before = decoded_weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with palettizer.training_mode():
        for _ in range(2):
            assert train_step(palettizer, model, optimizer) == {"0.bias", "2.bias"}
    assert all(torch.equal(before[n], w) for n, w in decoded_weights(model).items())


def test_a_schedule_trains_dense_until_its_step() -> None:
    palettizer, model = scheduled(2)
    everything = {name for name, _ in model.named_parameters()}
    initial = decoded_weights(model)
    assert distinct(model) == [4, 4]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with palettizer.training_mode():
        assert distinct(model) == [128, 64]
        assert train_step(palettizer, model, optimizer) == everything
        assert distinct(model) == [128, 64]
        assert train_step(palettizer, model, optimizer) == everything
        trained = model[0].parametrizations.weight.original.detach().clone()
        assert distinct(model) == [4, 4]
        assert train_step(palettizer, model, optimizer) == {"0.bias", "2.bias"}
    now = decoded_weights(model)["0.weight"]
    assert not torch.equal(now, initial["0.weight"])
    # From the trained weights: each is its nearest entry, and entries are means.
    lut = now.unique()
    assert torch.equal((trained[..., None] - lut).abs().argmin(-1), torch.searchsorted(lut, now))
    for entry in lut:
        torch.testing.assert_close(trained[now == entry].mean(), entry)
    assert torch.equal(model[0].parametrizations.weight.original, trained)


def test_steps_count_across_sessions() -> None:
    palettizer, model = scheduled(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for expected in ([128, 64], [128, 64], [4, 4], [4, 4]):
        with palettizer.training_mode():
            train_step(palettizer, model, optimizer)
        assert distinct(model) == expected


def test_a_schedule_of_zero_is_at_once() -> None:
    palettizer, model = scheduled(0)
    with palettizer.training_mode():
        assert distinct(model) == [4, 4]


def test_a_waiting_weight_counts_as_dense() -> None:
    palettizer, model = scheduled(5)
    palettized = bits_per_weight(model)
    assert palettized < 10
    with palettizer.training_mode():
        assert bits_per_weight(model) == 32


def test_finalizing_a_waiting_weight_takes_it_as_it_is_now(tmp_path: Path) -> None:
    palettizer, model = scheduled(100)
    initial = decoded_weights(model)
    with palettizer.training_mode(), torch.no_grad():
        for p in model.parameters():
            p.mul_(-3)
    with pytest.raises(StateError, match=r"0\.weight still trains dense"):
        save_checkpoint(model, tmp_path / "c")
    assert not list(tmp_path.iterdir())
    final = palettizer.finalize(backend="packed")
    torch.testing.assert_close(final[0].weight, -3 * initial["0.weight"])
    assert save_checkpoint(final, tmp_path / "c").exists()


def test_whether_a_weight_waits_survives_copies_and_state_dictionaries() -> None:
    palettizer, model = scheduled(4)
    with palettizer.training_mode():
        palettizer.step()
    dense = model(*MLP_INPUTS)
    assert torch.equal(copy.deepcopy(model)(*MLP_INPUTS), dense)
    _, other = scheduled(4)
    assert not torch.equal(other(*MLP_INPUTS), dense)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(*MLP_INPUTS), dense)


def test_weights_that_became_nan_are_named_and_stay_as_they_are() -> None:
    palettizer, model = scheduled(1)
    with palettizer.training_mode():
        with torch.no_grad():
            model[2].parametrizations.weight.original[0, 0] = float("nan")
        with pytest.raises(WeightError, match=r"^2\.weight"):
            palettizer.step()
        assert distinct(model)[0] == 128  # none was changed
        with torch.no_grad():
            model[2].parametrizations.weight.original[0, 0] = 0.0
        palettizer.step()
        assert distinct(model) == [4, 4]


def test_tied_weights_train_and_are_clustered_together() -> None:
    config = weight_config()
    config.global_config.pat_schedule = PATSchedule(enable_fake_palettize=1)
    palettizer = KMeansPalettizer(Tied(), config)
    model = palettizer.prepare(TOKENS)
    with palettizer.training_mode():
        assert len(model.head.weight.unique()) == 128
        model(*TOKENS).sum().backward()
        assert model.embed.parametrizations.weight.original.grad is not None
        palettizer.step()
    assert len(model.head.weight.unique()) == 4
    assert model.head.weight is model.embed.weight


def test_reclustering_leaves_global_random_states() -> None:
    palettizer, model = scheduled(1)
    state = torch.get_rng_state()
    with palettizer.training_mode():
        palettizer.step()
    assert torch.equal(torch.get_rng_state(), state)
    assert palette_sites(model)[0].palette.is_enabled
