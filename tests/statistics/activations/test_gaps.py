"""What gone inputs do to outputs, added up: beside its definition in float64."""

import types

import pytest
import torch

from palette_core.plugins import Consumption
from palette_core.statistics.activations.accumulate import Accumulator
from palette_core.statistics.activations.collect import compensated
from palette_core.tensors import BlockLayout
from palette_core.tensors.input_views import Contraction, Features
from palette_core.tensors.moments import InputMoments

FEATURES = (Features(), (3, 16), lambda: torch.randn(2, 30, 16))
WIDE = (Features(), (24, 16), lambda: torch.randn(2, 30, 16))
GROUPS = (Features(parts=2), (6, 16), lambda: torch.randn(2, 30, 16))
EXPERTS = (
    Contraction((-1,), n_groups=3, batch=-3, rows=(1,)),
    (3, 2, 16),
    lambda: torch.randn(3, 30, 16),
)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    ("view", "shape", "make"), [FEATURES, WIDE, GROUPS, EXPERTS], ids=["few", "many", "two", "each"]
)
def test_gaps_are_those_of_the_definition(view, shape, make, narrow, counted):
    torch.manual_seed(0)
    if counted and view.groups() > 1:
        pytest.skip("counts are of outputs that share one matrix")
    weight = torch.randn(shape)
    plan = types.SimpleNamespace(name="w", layout=BlockLayout(shape, shape))
    sums = Accumulator(None, (plan, weight) if narrow else None)
    matrices = InputMoments(torch.empty(view.groups(), 0), plan.layout, 0, view.rows).to_matrices(
        weight
    )
    crosses, vectors = 0.0, 0
    for number in range(4):
        raw = tuple(make() for _ in range(getattr(view, "parts", 1)))
        before = tuple(x + (number > 0) * torch.randn_like(x) for x in raw)
        now = torch.cat([piece for _, piece in view.vectors(raw)]).double()
        then = torch.cat([piece for _, piece in view.vectors(before)]).double()
        counts = torch.rand(1, now.shape[2]) if counted and number % 2 else None
        times = 1.0 if counts is None else counts.double()[:, None]
        crosses = crosses + (then - now) * times @ now.mT
        vectors += now.shape[2]
        sums.add("w", Consumption(weight, raw, view), counts, before)
        sums.forget_inputs()
    truth = matrices.double() @ crosses / vectors
    torch.testing.assert_close(sums.gap("w", matrices), truth, rtol=1e-4, atol=1e-5)


def test_there_is_no_gap_where_inputs_are_as_they_were():
    x, weight = torch.randn(5, 4), torch.randn(1, 4)
    sums = Accumulator()
    sums.add("w", Consumption(weight, (x,), Features()), None, (x.clone(),))
    assert sums.gap("w", weight[None]) is None
    sums.add("w", Consumption(weight, (x,), Features()), None, (x + 1,))
    assert sums.gap("w", weight[None]) is not None


def test_compensation_solves_for_the_outputs_of_the_unchanged_model():
    torch.manual_seed(0)
    before, weight = torch.randn(200, 6), torch.randn(3, 6)
    now = before @ (torch.eye(6) + 0.1 * torch.randn(6, 6))  # of full rank: all can be made good
    layout = BlockLayout((3, 6), (3, 6))
    hessian = (now.T @ now / 200)[None]
    moments = InputMoments(hessian.double(), layout, 200, (0,))
    kept = moments.hessian.clone()
    gap = (weight @ (before - now).T @ now / 200)[None].double()
    found = compensated(weight, moments, gap, 0.0)
    torch.testing.assert_close(
        found @ now.double().T, (weight @ before.T).double(), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(moments.hessian, kept)
