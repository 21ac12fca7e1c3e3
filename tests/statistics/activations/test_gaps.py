"""What gone inputs do to outputs, added up: beside its definition in float64."""

import types

import pytest
import torch

from palette_core.plugins import Consumption
from palette_core.statistics.activations import compensating
from palette_core.statistics.activations.accumulate import Accumulator, Gap
from palette_core.statistics.activations.compensating import Compensation
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
    gap = sums.gap("w")
    found = 0.0 if gap.moved is None else gap.moved
    found = found if gap.cross is None else found + matrices.double() @ gap.cross
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_there_is_no_gap_where_inputs_are_as_they_were():
    x, weight = torch.randn(5, 4), torch.randn(1, 4)
    sums = Accumulator()
    sums.add("w", Consumption(weight, (x,), Features()), None, (x.clone(),))
    assert sums.gap("w") is None
    sums.add("w", Consumption(weight, (x,), Features()), None, (x + 1,))
    assert sums.gap("w") is not None


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("through", ["cross", "moved", "both"])
def test_compensation_solves_for_the_outputs_of_the_unchanged_model(rows, through):
    torch.manual_seed(0)
    before, weight = torch.randn(200, 6), torch.randn(rows, 6)
    now = before @ (torch.eye(6) + 0.1 * torch.randn(6, 6))  # of full rank: all can be made good
    layout = BlockLayout((rows, 6), (rows, 6))
    hessian = (now.T @ now / 200)[None]
    moments = InputMoments(hessian.double(), layout, 200, (0,))
    kept = moments.hessian.clone()
    cross = ((before - now).T @ now)[None].double()
    share = {"cross": (1.0, 0.0), "moved": (0.0, 1.0), "both": (0.5, 0.5)}[through]
    gap = Gap(
        share[0] * cross if share[0] else None,
        share[1] * weight.double() @ cross if share[1] else None,
        200,
    )
    found = Compensation().target(weight, moments, gap, 0.0)
    torch.testing.assert_close(
        found @ now.double().T, (weight @ before.T).double(), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(moments.hessian, kept)


def test_weights_with_one_input_are_solved_for_once(monkeypatch):
    """Those with many rows share a solution, and get what each would get by itself."""
    torch.manual_seed(0)
    sums, x = Accumulator(), torch.randn(50, 4)
    weights = {"q": torch.randn(6, 4), "k": torch.randn(1, 4), "v": torch.randn(8, 4)}
    for name, weight in weights.items():
        sums.add(name, Consumption(weight, (x,), Features()), None, (x + torch.randn(50, 4),))
        sums.forget_inputs()
    before = (x + 1,)
    for name, weight in weights.items():
        sums.add(name, Consumption(weight, (x,), Features()), None, before)
    shared = Accumulator()
    for name, weight in weights.items():
        shared.add(name, Consumption(weight, (x,), Features()), None, before)
    plans = {
        name: types.SimpleNamespace(name=name, layout=BlockLayout(tuple(w.shape), tuple(w.shape)))
        for name, w in weights.items()
    }
    assert shared.gap("q") is shared.gap("v")
    assert sums.gap("q") is not sums.gap("v")
    calls, solve = [], compensating._solved
    monkeypatch.setattr(compensating, "_solved", lambda *a: calls.append(1) or solve(*a))
    for each, solved in ((shared, 1), (sums, 3)):
        together, before = Compensation(), len(calls)
        for name, weight in weights.items():
            moments, gap = each.result(plans[name]), each.gap(name)
            found = together.target(weight, moments, gap, 0.1)
            ridge = 0.1 * moments.diagonal().double().mean() * torch.eye(4)
            drift = gap.cross[0] @ torch.linalg.inv(moments.hessian[0].double() + ridge)
            truth = weight.double() + weight.double() @ drift
            torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)
        assert len(calls) - before == solved
