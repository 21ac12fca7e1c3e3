"""ste and dkm in models: what evaluation gives, what learns, what is saved."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from training_models import (
    INPUTS,
    SPECS,
    STRATEGIES,
    adam,
    assert_same_values,
    config,
    convnet,
    items,
    loss_of,
    prepared,
    train,
    values,
)

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    load_checkpoint,
    save_checkpoint,
)
from palette_core.builtins.training.options import DkmOptions
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.storage.sites import palette_sites

LEARN = ("ste", "tables", "dkm")


def original(model: nn.Module, at: int = 0) -> nn.Parameter:
    return model[at].parametrizations.weight.original


# --- evaluation and finalize --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_evaluation_gives_what_finalize_gives(
    strategy: str, spec: dict[str, Any], tmp_path: Path
) -> None:
    palettizer, model = prepared(training_strategy=strategy, **spec)
    before = {i: model[i].weight.clone() for i in (0, 3, 5)}
    losses = train(palettizer, model, 12)
    assert losses[-1] < losses[0]
    weights = {i: model[i].weight.clone() for i in (0, 3, 5)}
    changed = [not torch.equal(before[i], weights[i]) for i in weights]
    assert changed == [strategy != "frozen"] * 3
    expected = model(*INPUTS)
    save_checkpoint(model, tmp_path / "c.safetensors")
    final = palettizer.finalize(backend="packed")
    for i, weight in weights.items():
        assert torch.equal(final[i].weight, weight)
    assert torch.equal(final(*INPUTS), expected)
    loaded = load_checkpoint(tmp_path / "c.safetensors", convnet().eval())
    assert torch.equal(loaded(*INPUTS), expected)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("strategy", ["ste", "dkm"])
def test_evaluation_is_the_nearest_entry_of_the_learned_tables(
    strategy: str, spec: dict[str, Any]
) -> None:
    palettizer, model = prepared(training_strategy=strategy, **spec)
    train(palettizer, model, 12)
    for site in palette_sites(model, PalettizedWeight):
        palettized = site.palette.palettized()
        points = site.dense().detach()
        if palettized.scale is not None:
            points = points / palettized.scale
        points = palettized.layout.split(points).double()
        book = palettized.codebook()
        gaps = torch.cdist(points, book.lut.double())
        chosen = gaps.gather(2, book.codes.long()[..., None])[..., 0]
        torch.testing.assert_close(chosen, gaps.amin(-1), msg=site.name)
        learned = site.palette.trained_table.detach().double()
        if palettized.lut_scale is None:
            assert torch.equal(learned, palettized.lut.double())
        else:  # quantized from the learned ones
            span = 2 * palettized.lut_scale.double()
            stored = book.lut.double().reshape(learned.shape)
            rough = learned.abs() / 8 if palettized.lut.dtype.is_floating_point else span
            assert ((stored - learned).abs() <= rough + span).all()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_tables_learn_for_the_codes_that_gptq_chose(spec: dict[str, Any]) -> None:
    spec = {**spec, "algorithm": "gptq", "training_strategy": "tables"}
    palettizer = KMeansPalettizer(convnet(), config(**spec))
    palettizer.calibrate([INPUTS])
    model = palettizer.prepare(INPUTS)
    codes = [item.palettized().codebook().codes.clone() for item in items(model)]
    tables = [item.trained_table.detach().clone() for item in items(model)]
    weights = [original(model, i).detach().clone() for i in (0, 3, 5)]
    losses = train(palettizer, model, 12)
    assert losses[-1] < losses[0]
    for i, weight in zip((0, 3, 5), weights, strict=True):
        assert torch.equal(original(model, i), weight)
    for item, code, table in zip(items(model), codes, tables, strict=True):
        book = item.palettized().codebook()
        assert torch.equal(book.codes, code)
        assert not torch.equal(item.trained_table, table)


@pytest.mark.parametrize("strategy", LEARN)
def test_before_any_training_evaluation_is_what_clustering_made(strategy: str) -> None:
    _, frozen = prepared()
    _, model = prepared(training_strategy=strategy)
    assert torch.equal(model(*INPUTS), frozen(*INPUTS))
    with torch.no_grad():
        model.train()(*INPUTS)  # statistics, say; nothing learns
    assert torch.equal(model.eval()(*INPUTS), frozen(*INPUTS))


def test_evaluation_follows_weights_and_tables_without_a_session() -> None:
    """A loop of the user's own, without training_mode."""
    palettizer, model = prepared(training_strategy="ste")
    model.train()
    loss_of(model).backward()
    model.eval()
    first = model(*INPUTS)
    with torch.no_grad():
        original(model).neg_()
    second = model(*INPUTS)
    assert not torch.equal(second, first)
    with torch.no_grad():
        items(model)[0].lut.mul_(2)
    third = model(*INPUTS)
    assert not torch.equal(third, second)
    original(model).data.neg_()  # which leaves no trace
    final = palettizer.finalize(copy.deepcopy(model), backend="packed")
    assert torch.equal(model.train().eval()(*INPUTS), final(*INPUTS))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_during_training_changes_nothing(mode: Any) -> None:
    runs = []
    for looks in (False, True):
        palettizer, model = prepared(training_strategy="dkm", lut_qspec={"dtype": "int8"})
        optimizer = adam(model)
        for _ in range(4):
            train(palettizer, model, 2, optimizer)
            if looks:
                with mode():
                    model(*INPUTS)
        runs.append(values(model))
    assert_same_values(*runs)


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_ste_gradients_are_sums_over_members_and_straight_through(spec: dict[str, Any]) -> None:
    _, model = prepared(training_strategy="ste", **spec)
    model.train()
    seen: dict[int, Tensor] = {}
    for i in (0, 3, 5):
        made = model[i].weight  # the gradient of what the layer uses
        made.retain_grad()
        seen[i] = made
    x = INPUTS[0]
    x = nn.functional.conv2d(x, seen[0], model[0].bias).relu().flatten(1)
    x = nn.functional.linear(x, seen[3], model[3].bias).relu()
    nn.functional.linear(x, seen[5], model[5].bias).sin().sum().backward()
    for i, made in seen.items():
        (item,) = model[i].parametrizations.weight
        palettized = item.palettized()
        torch.testing.assert_close(original(model, i).grad, made.grad)
        grad = made.grad if item.scale is None else made.grad * item.scale
        points = palettized.layout.split(grad)
        book = palettized.codebook()
        one_hot = nn.functional.one_hot(book.codes.long(), 4).float()
        expected = one_hot.mT @ points
        torch.testing.assert_close(item.trained_table.grad.reshape(expected.shape), expected)


def test_dkm_is_the_full_attention_matrix() -> None:
    """Two soft k-means steps and the attended weights, with everything kept by autograd."""
    options = {"temperature": 3.0, "iterations": 2}
    _, model = prepared(training_strategy="dkm", training_strategy_options=options)
    (item,) = model[3].parametrizations.weight
    weight, lut = original(model, 3), item.lut.detach().reshape(-1, 1)
    gaps = (lut - lut.T).square() + torch.diag(torch.full((4,), torch.inf))
    tau = 3.0 * gaps.amin(1).mean() / 12
    x = weight.reshape(-1, 1)

    def attention(entries: Tensor) -> Tensor:
        return torch.softmax(-(x - entries.T).square() / tau, dim=1)

    entries = lut
    for _ in range(2):
        a = attention(entries)
        entries = (a.T @ x) / a.sum(0)[:, None]
    expected = (attention(entries) @ entries).reshape(weight.shape)
    got = model.train()[3].weight
    torch.testing.assert_close(got, expected)
    grad = torch.randn(expected.shape)
    (wanted,) = torch.autograd.grad(expected, weight, grad)
    torch.testing.assert_close(torch.autograd.grad(got, weight, grad)[0], wanted)


def test_the_temperature_falls_as_scheduled() -> None:
    options = {"temperature": 4.0, "final_temperature": 0.01, "anneal_steps": 4}
    palettizer, model = prepared(training_strategy="dkm", training_strategy_options=options)
    distances = []
    with palettizer.training_mode():
        for _ in range(6):
            soft = model[3].weight.detach()
            (item,) = model[3].parametrizations.weight
            near = (soft[..., None] - item.lut.flatten()).abs().amin(-1)
            distances.append(float(near.mean()))
            palettizer.step()
    assert all(a > b for a, b in itertools.pairwise(distances[:5]))
    assert distances[4] < 0.05 * distances[0]


def test_temperatures_are_geometric() -> None:
    options = DkmOptions(temperature=4.0, final_temperature=0.01, anneal_steps=4)
    assert [options.at(step) for step in (0, 4, 9)] == [4.0, 0.01, 0.01]
    assert options.at(2) == pytest.approx(0.2)
    assert DkmOptions(temperature=3.0, anneal_steps=5).at(2) == 3.0


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("quantized", [False, True])
def test_optimizers_see_originals_and_the_tables_that_learn(strategy: str, quantized: bool) -> None:
    spec = SPECS["int8"] if quantized else {}
    palettizer, model = prepared(training_strategy=strategy, **spec)
    names = {name for name, _ in model.named_parameters()}
    table = "float_lut" if quantized else "lut"
    tables = {f"{i}.parametrizations.weight.0.{table}" for i in (0, 3, 5)}
    originals = {f"{i}.parametrizations.weight.original" for i in (0, 3, 5)}
    biases = {f"{i}.bias" for i in (0, 3, 5)}
    assert names == originals | biases | (tables if strategy in ("ste", "tables") else set())
    with palettizer.training_mode():
        loss_of(model).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    learn = {
        "frozen": set(),
        "ste": originals | tables,
        "tables": tables,
        "dkm": originals,
    }[strategy]
    assert reached == biases | learn


def test_an_optimizer_made_before_prepare_keeps_its_parameters() -> None:
    dense = convnet()
    optimizer = adam(dense)
    palettizer = KMeansPalettizer(dense, config(training_strategy="dkm"))
    model = palettizer.prepare(INPUTS)
    before = original(model).detach().clone()
    losses = train(palettizer, model, 10, optimizer)
    assert not torch.equal(original(model), before)
    assert losses[-1] < losses[0]


def test_what_the_user_froze_stays_frozen() -> None:
    dense = convnet()
    dense[3].weight.requires_grad_(False)
    palettizer = KMeansPalettizer(dense, config(training_strategy="ste"))
    model = palettizer.prepare(INPUTS)
    before = model.eval()[3].weight.clone()
    train(palettizer, model, 5)
    assert not original(model, 3).requires_grad
    assert torch.equal(model[3].weight, before)
    assert not torch.equal(model[5].weight, convnet()[5].weight)
    table = items(model)[1].lut.requires_grad_()  # tables alone, on demand
    with palettizer.training_mode():
        loss_of(model).backward()
    assert table.grad is not None
    assert original(model, 3).grad is None


# --- saved, copied, resumed ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", LEARN)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_state_dicts_restore_exactly(strategy: str, spec: dict[str, Any]) -> None:
    palettizer, model = prepared(training_strategy=strategy, **spec)
    keys = model.state_dict().keys()
    train(palettizer, model, 5)
    assert model.state_dict().keys() == keys
    _, other = prepared(training_strategy=strategy, **spec)
    other.load_state_dict(values(model))
    assert torch.equal(other(*INPUTS), model(*INPUTS))
    assert_same_values(values(other), values(model))


@pytest.mark.parametrize("strategy", LEARN)
@pytest.mark.parametrize("start", [None, 2, 5])
def test_resumed_training_goes_on_where_it_stopped(strategy: str, start: int | None) -> None:
    options = {"final_temperature": 0.5, "anneal_steps": 8} if strategy == "dkm" else {}
    how: dict[str, Any] = {"training_strategy": strategy, "training_strategy_options": options}

    def fresh() -> tuple[KMeansPalettizer, nn.Module, torch.optim.Optimizer]:
        palettizer, model = prepared(start=start, **how)
        return palettizer, model, adam(model)

    palettizer, model, optimizer = fresh()
    train(palettizer, model, 8, optimizer)
    first, stopped, saved = fresh()
    train(first, stopped, 4, saved)
    state, progress = values(stopped), copy.deepcopy(saved.state_dict())
    second, resumed, optimizer = fresh()
    resumed.load_state_dict(state)
    optimizer.load_state_dict(progress)
    train(second, resumed, 4, optimizer)
    assert_same_values(values(resumed), values(model))


@pytest.mark.parametrize("strategy", LEARN)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_in_training_train_on_alike(strategy: str, copied: Any) -> None:
    palettizer, model = prepared(training_strategy=strategy)
    train(palettizer, model, 3)
    with palettizer.training_mode():
        twin = copied(model)
    assert torch.equal(twin.eval()(*INPUTS), model(*INPUTS))
    expected = values(model)
    losses = train(palettizer, twin, 3)
    assert_same_values(values(model), expected)
    assert train(palettizer, model, 3) == losses
    assert_same_values(values(twin), values(model))


# --- in larger settings -------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", LEARN)
def test_gradient_checkpointing_gives_the_same_gradients(strategy: str) -> None:
    found = []
    for wrap in (False, True):
        palettizer, model = prepared(training_strategy=strategy)
        with palettizer.training_mode():
            palettizer.step()
            out = checkpoint(model, *INPUTS, use_reentrant=False) if wrap else model(*INPUTS)
            out.square().sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        found.append({n: grad for n, grad in grads.items() if grad is not None})
        assert found[-1]
    assert_same_values(*found)


@pytest.mark.parametrize("strategy", LEARN)
@pytest.mark.parametrize("around_backward", [False, True])
def test_autocast_leaves_the_palette_in_full_precision(
    strategy: str, around_backward: bool
) -> None:
    palettizer, model = prepared(training_strategy=strategy)
    _, twin = prepared(training_strategy=strategy)
    grad = torch.randn(model[3].weight.shape)
    found = []
    for each, mixed in ((model, True), (twin, False)):
        each.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            made = each[3].weight
            assert made.dtype is torch.float32
            if around_backward:
                made.backward(grad)
        if not around_backward:
            made.backward(grad)
        learns = items(each)[1].trained_table if strategy == "tables" else original(each, 3)
        found.append(learns.grad)
    assert torch.equal(*found)
    with palettizer.training_mode(), torch.autocast("cpu", torch.bfloat16):
        out = model(*INPUTS)
        assert out.dtype is torch.bfloat16
        out.float().sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", LEARN)
def test_half_precision_models(strategy: str, dtype: torch.dtype) -> None:
    inputs = (INPUTS[0].to(dtype),)
    palettizer, model = prepared(
        lambda: convnet().to(dtype), inputs, training_strategy=strategy, lut_qspec={"dtype": "int8"}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = train(palettizer, model, 10, optimizer, inputs)
    assert losses[-1] < losses[0]
    final = palettizer.finalize(copy.deepcopy(model), backend="packed")
    assert torch.equal(final(*inputs), model(*inputs))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(8, 8, bias=False)
        self.second = nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("strategy", LEARN)
def test_tied_weights_learn_together(strategy: str) -> None:
    inputs = (torch.linspace(-1, 1, 32).reshape(4, 8),)
    palettizer, model = prepared(Tied, inputs, training_strategy=strategy)
    assert len(items(model)) == 1
    losses = train(palettizer, model, 10, inputs=inputs)
    assert losses[-1] < losses[0]
    assert torch.equal(model.first.weight, model.second.weight)
    expected = model(*inputs)
    assert torch.equal(palettizer.finalize(backend="packed")(*inputs), expected)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@pytest.mark.parametrize("strategy", LEARN)
def test_recurrent_layers(strategy: str) -> None:
    inputs = (torch.linspace(-1, 1, 40).reshape(2, 5, 4),)
    spec = PalettizationSpec(n_bits=2, training_strategy=strategy)
    states = {"weight_ih_l0": spec, "weight_hh_l0": spec}
    rules = KMeansPalettizerConfig(global_config=None)
    rules.set_module_type(nn.LSTM, ModuleKMeansPalettizerConfig(op_state_spec=states))
    palettizer = KMeansPalettizer(Recurrent().eval(), rules)
    model = palettizer.prepare(inputs)
    losses = train(palettizer, model, 10, inputs=inputs)
    assert losses[-1] < losses[0]
    expected = model.eval()(*inputs)
    assert torch.equal(palettizer.finalize(backend="packed")(*inputs), expected)


# --- schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_schedule_starts_every_strategy(strategy: str) -> None:
    palettizer, model = prepared(start=3, training_strategy=strategy)
    optimizer = adam(model)
    kinds = []
    with palettizer.training_mode():
        for _ in range(5):
            kinds.append(len(model[3].weight.unique()))
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            palettizer.step()
        fresh = items(model)[1].steps_done
    assert kinds[:3] == [model[3].weight.numel()] * 3
    assert all((kind > 4) is (strategy == "dkm") for kind in kinds[3:])  # dkm is soft
    assert fresh == 5
    expected = model.eval()(*INPUTS)
    assert len(model[3].weight.unique()) == 4
    assert torch.equal(palettizer.finalize(backend="packed")(*INPUTS), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_finalizing_before_the_schedule_clusters_the_present_values(strategy: str) -> None:
    palettizer, model = prepared(start=9, training_strategy=strategy)
    train(palettizer, model, 3)
    weight = original(model, 3).detach().clone()
    palettizer.finalize(backend="packed")
    lut = model[3].weight.unique()
    assert len(lut) == 4
    near = lut[(weight[..., None] - lut).abs().argmin(-1)]
    assert torch.equal(model[3].weight, near)
    for entry in lut:
        torch.testing.assert_close(weight[near == entry].mean(), entry)
