"""Predictions next to what the palettized model does."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    PaletteWarning,
    allocate,
    compare_predictions,
)
from palette_core.errors import AllocationError

BATCHES = [torch.randn(20, 16, generator=torch.Generator().manual_seed(s)) for s in range(2)]


def dense() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 8))
    with torch.no_grad():
        model[0].weight[:4] *= 5
    return model


def config(algorithm: str | None = None) -> KMeansPalettizerConfig:
    spec = {"n_bits": 4, "algorithm": algorithm}
    return KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": {"op_state_spec": {"weight": spec}}}}
    )


def relative_error(model: nn.Module) -> Tensor:
    """What the metric output predicts, but with all weights palettized together."""
    total = torch.zeros((), dtype=torch.float64)
    reference = dense().eval()
    for batch in BATCHES:
        right = reference(batch).double()
        total += (model(batch).double() - right).square().sum() / right.square().sum() / 2
    return total


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [None, "lnq"])
def test_measured_as_the_palettizer_palettizes(algorithm: str | None) -> None:
    model = dense()
    how = {"candidates": (1, 2, 4), "metric": "output", "batches": BATCHES}
    allocation = allocate(model, config(algorithm), BATCHES[:1], target_bpw=8, **how)
    rows = compare_predictions(model, allocation, relative_error, batches=BATCHES)
    assert len(rows) == 3
    for row, point in ((rows[0], allocation.curve[0]), (rows[-1], allocation.curve[-1])):
        assert (row.bits_per_weight, row.predicted_loss) == point
    for row in rows:
        point = allocate(
            model, config(algorithm), BATCHES[:1], target_bpw=row.bits_per_weight, **how
        )
        assert point.predicted_loss == row.predicted_loss
        again = dense()
        palettizer = KMeansPalettizer(again, point.config)
        palettizer.calibrate(BATCHES)
        palettizer.prepare(BATCHES[:1])
        with torch.no_grad():
            expected = float(relative_error(again.eval()))
        assert row.measured_loss == pytest.approx(expected, rel=1e-6)
        # Few weights, and small errors: the sum over tensors is nearly the whole.
        assert row.measured_loss == pytest.approx(row.predicted_loss, rel=0.5)


def test_predictions_for_scales_by_block_are_measured_with_them() -> None:
    blocks = {"n_bits": 3, "scale_block_size": 4}
    how = {"candidates": (2, 3, blocks), "metric": "output", "batches": BATCHES}
    allocation = allocate(dense(), config(), BATCHES[:1], target_bpw=8, **how)
    last = compare_predictions(dense(), allocation, relative_error, batches=BATCHES)[-1]
    assert {
        t.candidates[i].plan.granularity
        for t, i in zip(allocation.tensors, allocation.curve_choices[-1], strict=True)
    } == {"per tensor, scale / 4"}
    again = dense()
    KMeansPalettizer(again, allocation.config).prepare(BATCHES[:1])
    with torch.no_grad():
        assert last.measured_loss == pytest.approx(float(relative_error(again.eval())), rel=1e-6)
    assert last.measured_loss == pytest.approx(last.predicted_loss, rel=0.5)


def test_the_model_stays_and_copies_are_judged_alike() -> None:
    model = dense().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    allocation = allocate(model, config(), BATCHES[:1], target_bpw=8, candidates=(2, 4))
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    draws, seen = [], []

    def measure(copied: nn.Module) -> float:
        assert not copied.training
        assert not torch.is_grad_enabled()
        draws.append(float(torch.rand(())))
        seen.append(copied)
        with torch.no_grad():
            copied[3].bias.fill_(7)
        return 1.0

    rows = compare_predictions(model, allocation, measure, points=2)
    assert [r.measured_loss for r in rows] == [0.0, 0.0]
    assert len(set(draws)) == 1
    assert all(a is not b for a, b in itertools.pairwise([model, *seen]))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert type(model[0]) is nn.Linear


def test_a_broken_palettized_model_is_shown_as_such() -> None:
    model = dense()
    allocation = allocate(model, None, BATCHES[:1], target_bpw=8, candidates=(2, 4))
    losses = iter([1.0, math.nan, math.inf, 2.0])
    rows = compare_predictions(model, allocation, lambda _: next(losses))
    assert math.isnan(rows[0].measured_loss)
    assert math.isinf(rows[1].measured_loss)
    assert rows[2].measured_loss == 1.0


def test_what_cannot_be_compared() -> None:
    model = dense()
    allocation = allocate(model, None, BATCHES[:1], target_bpw=8, candidates=(2,))

    def boom(_: nn.Module) -> float:
        raise OSError("no data")

    for measure, words in (
        (lambda _: None, "measure failed on the dense model: TypeError"),
        (boom, "OSError: no data"),
        (lambda _: math.nan, "returned nan for the dense model"),
    ):
        with pytest.raises(AllocationError, match=words):
            compare_predictions(model, allocation, measure)
    with pytest.raises(AllocationError, match="at least 1, got 0"):
        compare_predictions(model, allocation, lambda _: 0.0, points=0)
    other = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(AllocationError, match=r"another model: this one has no 0\.weight of shape"):
        compare_predictions(other, allocation, lambda _: 0.0)
    prepared = copy.deepcopy(model)
    KMeansPalettizer(prepared, allocation.config).prepare(BATCHES[:1])
    with pytest.raises(AllocationError, match="palettized already"):
        compare_predictions(prepared, allocation, lambda _: 0.0)


def test_missing_batches_are_warned_of() -> None:
    model = dense()
    allocation = allocate(
        model, config("gptq"), BATCHES[:1], target_bpw=8, candidates=(2,), batches=BATCHES
    )
    with pytest.warns(PaletteWarning, match="no calibration batches were given"):
        compare_predictions(model, allocation, lambda _: 0.0)
