"""Plug-ins that write, unseen, to what they are given, or go on using what they have returned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wrong_clusterers import Fits, entry, right
from wrong_forms import Bytes, form
from wrong_metrics import metric
from wrong_runtimes import strategy
from wrong_tables import quantizer
from wrong_tables import right as right_table

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    allocate,
)
from palette_core.plugins import TrainingStrategy

INPUTS = (torch.linspace(-1, 1, 16).reshape(2, 8),)


def spoil(*tensors: Tensor | None) -> None:
    """Write where torch does not see it."""
    for tensor in tensors:
        if tensor is not None:
            tensor.detach().numpy()[...] = 7


def config(**spec: Any) -> KMeansPalettizerConfig:
    made = PalettizationSpec(n_bits=2, **spec)
    return KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(op_state_spec={"weight": made})
    )


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()


def weights(model: nn.Module) -> list[Tensor]:
    return [model.get_parameter(f"{at}.weight").detach().clone() for at in (0, 1)]


def originals(model: nn.Module) -> list[Tensor]:
    return [model.get_submodule(str(at)).parametrizations.weight.original for at in (0, 1)]


class Buffer:
    """Memory that is used again for every result of one shape."""

    def __init__(self) -> None:
        self._kept: dict[Any, Tensor] = {}

    def __call__(self, made: Tensor) -> Tensor:
        return self._kept.setdefault((made.shape, made.dtype), made.clone()).copy_(made)


@pytest.mark.parametrize("through", ["numpy", "data", "importance"])
def test_a_clusterer_may_write_to_its_points(model, register, through) -> None:
    def fit(problem):
        made = right(problem)
        if through == "data":
            problem.points.data.fill_(7)
        else:
            spoil(problem.points, problem.importance)
        return made

    register(entry(fit))
    before = weights(model)
    prepared = KMeansPalettizer(model, config(algorithm="wrong")).prepare(INPUTS)
    assert all(map(torch.equal, originals(prepared), before))


def test_a_clusterer_may_use_its_buffers_again(model, register) -> None:
    buffer = Buffer()

    def fit(problem):
        made = right(problem)
        return replace(made, lut=buffer(made.lut), codes=buffer(made.codes))

    expected = KMeansPalettizer(copy_of(model), config()).prepare(INPUTS)
    register(entry(right, factory=lambda options: Fits(fit)))
    prepared = KMeansPalettizer(model, config(algorithm="wrong")).prepare(INPUTS)
    assert torch.equal(prepared(*INPUTS), expected(*INPUTS))


def copy_of(model: nn.Module) -> nn.Module:
    made = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    made.load_state_dict(model.state_dict())
    return made


def test_a_lut_quantizer_may_do_both(model, register) -> None:
    buffer = Buffer()

    def quantize(lut):
        made = right_table(lut)
        spoil(lut)
        return replace(made, values=buffer(made.values), scale=buffer(made.scale))

    register(quantizer(right_table))
    spec = {"lut_qspec": {"dtype": "int8", "quantizer": "wrong"}}
    expected = KMeansPalettizer(copy_of(model), config(**spec)).prepare(INPUTS)(*INPUTS)
    register(replace(quantizer(quantize), name="worse"))
    spec["lut_qspec"]["quantizer"] = "worse"
    prepared = KMeansPalettizer(model, config(**spec)).prepare(INPUTS)
    assert torch.equal(prepared(*INPUTS), expected)


def test_a_metric_may_write_to_its_candidate(model, register) -> None:
    def loss(candidate):
        error = float((candidate.weight - candidate.decoded).square().sum())
        spoil(candidate.weight, candidate.decoded)
        return error

    register(metric(loss))
    before = weights(model)
    allocate(model, None, INPUTS, target_bpw=8, metric="wrong")
    assert all(map(torch.equal, weights(model), before))


def test_a_strategy_may_do_both(model, register) -> None:
    buffer = Buffer()

    class Reuses(TrainingStrategy):
        def forward(self, problem):
            made = problem.decode() + problem.weight - problem.weight.detach()
            spoil(problem.weight, problem.decode(), problem.lut)
            return buffer(made.detach()) + made - made.detach()

    register(strategy(None))
    palettizer = KMeansPalettizer(model, config(training_strategy="wrong"))
    expected = palettizer.prepare(INPUTS)(*INPUTS)
    before = [tensor.detach().clone() for tensor in originals(model)]
    register(replace(strategy(None), name="worse", factory=lambda options: Reuses()))
    other = copy_of_dense(before)
    trained = KMeansPalettizer(other, config(training_strategy="worse"))
    trained.prepare(INPUTS)
    with trained.training_mode():
        other(*INPUTS).sum().backward()
        assert all(tensor.grad is not None for tensor in originals(other))
    assert all(map(torch.equal, originals(other), before))
    assert torch.equal(other(INPUTS[0]) - other[1].bias, expected - model[1].bias)


def copy_of_dense(tensors: list[Tensor]) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    for layer, tensor in zip(made, tensors, strict=True):
        layer.weight.data.copy_(tensor)
    return made


def test_a_stored_form_may_do_both(model, register) -> None:
    buffer = Buffer()

    class Reuses(Bytes):
        operator = "tests_reuses::depalettize"

        def encode(self, tensor):
            codes = buffer(tensor.indices)
            spoil(tensor.indices, tensor.lut)
            return {"codes": codes}

        def decode(self, stored):
            codes = buffer(stored.parts["codes"])
            made = stored._replace(lut=stored.lut.clone()).with_indices(codes)
            spoil(stored.parts["codes"], stored.lut)
            return made

    register(form(Reuses))
    expected = KMeansPalettizer(copy_of(model), config()).prepare(INPUTS)(*INPUTS)
    palettizer = KMeansPalettizer(model, config(stored_form="wrong"))
    palettizer.prepare(INPUTS)
    finalized = palettizer.finalize(backend="packed")
    for _ in range(2):
        assert torch.equal(finalized(*INPUTS), expected)
