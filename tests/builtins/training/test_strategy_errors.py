"""Strategies of others: what they can do, and what happens when they fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_models import INPUTS, items, loss_of, prepared, train

from palette_core.errors import TrainingError, WeightError
from palette_core.plugins import TrainingStrategy, TrainingStrategyEntry
from palette_core.plugins.training_problem import TrainingProblem


class Half(TrainingStrategy):
    """Half way between the weight and its palette; the tables drift to zero."""

    def forward(self, problem: TrainingProblem) -> Tensor:
        return (problem.weight + problem.decode()) / 2

    def harden(self, problem: TrainingProblem) -> Tensor:
        return (problem.points() > 0)[..., 0].to(torch.uint8) * 3

    def advance(self, problem: TrainingProblem) -> Tensor:
        return problem.lut * (1 - 0.1 * problem.step)


def with_strategy(strategy: TrainingStrategy, *, moves: bool = True, **spec: Any) -> Any:
    palettizer, model = prepared(training_strategy="dkm" if moves else "frozen", **spec)
    for item in items(model):
        checked = item.trainer.strategy
        made = replace(checked.made, work=strategy)
        item.trainer = replace(item.trainer, strategy=replace(checked, made=made))
    return palettizer, model


@pytest.mark.parametrize("quantized", [False, True])
def test_a_strategy_of_ones_own(quantized: bool) -> None:
    spec = {"lut_qspec": {"dtype": "int8"}} if quantized else {}
    palettizer, model = with_strategy(Half(), **spec)
    item = items(model)[0]
    lut = item.palettized().codebook().lut.clone()
    weight = model[0].parametrizations.weight.original
    with palettizer.training_mode():
        assert torch.equal(model[0].weight, (weight + item.palettized().decode()) / 2)
        loss_of(model).backward()
        for _ in range(3):
            palettizer.step()
    assert torch.equal(item.palettized().indices, (weight > 0).to(torch.uint8) * 3)
    got, expected = item.palettized().codebook().lut, lut * 1.0 * 0.9 * 0.8
    torch.testing.assert_close(got, expected, rtol=0, atol=0.01 if quantized else 1e-6)
    expected = model(*INPUTS)
    assert torch.equal(palettizer.finalize(backend="packed")(*INPUTS), expected)


class Broken(TrainingStrategy):
    def __init__(self, forward: Any = None, harden: Any = None, advance: Any = None) -> None:
        self.makes = {"forward": forward, "harden": harden, "advance": advance}

    def _make(self, what: str, problem: TrainingProblem) -> Any:
        make = self.makes[what]
        return None if make is None else make(problem)

    def forward(self, problem: TrainingProblem) -> Tensor:
        return problem.weight if self.makes["forward"] is None else self._make("forward", problem)

    def harden(self, problem: TrainingProblem) -> Tensor | None:
        return self._make("harden", problem)

    def advance(self, problem: TrainingProblem) -> Tensor | None:
        return self._make("advance", problem)


def leave(problem: TrainingProblem) -> Tensor:
    raise SystemExit("enough")


@pytest.mark.parametrize(
    ("makes", "message"),
    [
        ({"forward": lambda p: p.weight * float("nan")}, "a weight with NaN or infinite"),
        ({"forward": lambda p: p.weight / 0}, "a weight with NaN or infinite"),
        ({"forward": lambda p: p.weight[:1]}, r"shape \(1, 2, 3, 3\), expected \(8, 2, 3, 3\)"),
        ({"forward": lambda p: p.weight.double()}, "float64, expected torch.float32"),
        ({"forward": lambda p: 3}, "returned int, expected a weight"),
        ({"forward": lambda p: 1 / 0}, "failed: ZeroDivisionError"),
        ({"forward": leave}, "failed: SystemExit: enough"),
        ({"harden": lambda p: p.codes().long()}, "codes of torch.int64, expected uint8"),
        ({"harden": lambda p: p.codes() + 9}, r"code 1\d, expected codes below 4"),
        ({"harden": lambda p: p.codes()[:, 1:]}, r"codes of shape \(1, 143\), expected \(1, 144\)"),
        ({"advance": lambda p: p.lut[:, 1:]}, r"tables of shape \(1, 3, 1\), expected \(1, 4, 1\)"),
        ({"advance": lambda p: p.lut * float("inf")}, "tables with values that are not finite"),
        ({"advance": lambda p: p.lut.long()}, "tables with values that are not finite"),
    ],
)
def test_what_a_strategy_may_not_return(makes: dict[str, Any], message: str) -> None:
    palettizer, model = with_strategy(Broken(**makes))
    with pytest.raises(TrainingError, match=rf"^0\.weight: training strategy 'dkm'.*{message}"):
        train(palettizer, model, 1)
    assert not model.training


@pytest.mark.parametrize("strategy", ["ste", "dkm"])
@pytest.mark.parametrize("part", ["weight", "table"])
def test_weights_and_tables_that_became_nan_are_no_fault_of_the_strategy(
    strategy: str, part: str
) -> None:
    _, model = prepared(training_strategy=strategy)
    model.train()
    loss_of(model).backward()
    item = items(model)[1]
    tensor = model[3].parametrizations.weight.original if part == "weight" else item.lut
    with torch.no_grad():
        tensor.view(-1)[1] = float("nan")
    what = {"weight": "the weight", "table": "its look-up table"}[part]
    for mode in (model.train, model.eval):
        mode()
        with pytest.raises(WeightError, match=rf"^3\.weight: {what} has become NaN"):
            model(*INPUTS)


def test_a_strategy_without_harden_keeps_the_assignment() -> None:
    palettizer, model = with_strategy(Broken(), moves=False)
    before = model(*INPUTS)
    codes = [item.indices.clone() for item in items(model)]
    optimizer = torch.optim.SGD(
        [p for name, p in model.named_parameters() if name.endswith("original")], lr=0.1
    )
    train(palettizer, model, 3, optimizer)
    assert all(torch.equal(a, b.indices) for a, b in zip(codes, items(model), strict=True))
    assert torch.equal(model(*INPUTS), before)


def test_an_entry_may_not_have_its_tables_moved_by_two() -> None:
    with pytest.raises(ValueError, match="'both' declares both trains_lut and moves_lut"):
        TrainingStrategyEntry(
            name="both",
            summary="s",
            interface=1,
            factory=lambda options: Half(),
            trains_lut=True,
            moves_lut=True,
        )
