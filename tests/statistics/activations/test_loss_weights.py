"""Moments weighted by a loss: calls that it does not depend on, and losses that are of no use."""

import math

import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.errors import CalibrationError
from palette_core.statistics.activations import Runner, collect
from palette_core.statistics.activations.guided import loss_weights

CONFIG = KMeansPalettizerConfig.from_dict(
    {
        "kmeans_palettization_config": {
            "global_config": {"op_state_spec": {"weight": {"n_bits": 2, "algorithm": "lnq"}}}
        }
    }
)


class Twice(nn.Module):
    """Uses a layer twice; the loss is of one of the two results."""

    def __init__(self, first):
        super().__init__()
        torch.manual_seed(0)
        self.l, self.o, self.first = nn.Linear(8, 8), nn.Linear(8, 4), first

    def forward(self, x, y):
        if self.first:
            used, unused = self.o(self.l(x)), self.l(y)
        else:
            unused, used = self.l(y), self.o(self.l(x))
        return used, unused


def batches():
    return [(torch.randn(20, 8), torch.randn(9, 8)) for _ in range(3)]


@pytest.mark.parametrize("first", [True, False])
def test_a_call_without_gradient_counts_nothing(first):
    model, given = Twice(first).eval(), batches()
    plan = list(KMeansPalettizer(model, CONFIG).make_plan(given[0]))

    def loss(out, batch):
        return out[0].square().mean()

    with Runner(model, plan, given) as runner:
        weights = loss_weights(runner, loss, 2)
        found, missing = collect(runner, weights=weights)
    assert not missing
    # By hand: the gradients at outputs of the call that counts, squared, averaged by half.
    squares, inputs = [], []
    for x, _ in given:
        hidden = model.l(x).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model.o(hidden).square().mean(), hidden)
        squares.append(gradient.double().square().reshape(20, 2, 4).mean(2))
        inputs.append(x.double())
    s, x = torch.cat(squares), torch.cat(inputs)
    wanted = torch.stack([(x.mT * s[:, g]) @ x for g in range(2)])
    got = found["l.weight"].hessian.double()
    unit = got.diagonal(dim1=1, dim2=2).sum(1) / wanted.diagonal(dim1=1, dim2=2).sum(1)
    assert torch.allclose(got, wanted * unit[:, None, None], rtol=1e-4, atol=1e-5)
    palettizer = KMeansPalettizer(model, CONFIG)
    palettizer.calibrate(given, loss=loss)
    palettizer.prepare(given[0])
    assert {row.algorithm for row in palettizer.report.tensors} == {"lnq"}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out, x: out[0].sum() * (math.nan if x[0].sum() > 99 else 1), "not finite on .* 1"),
        (
            lambda out, x: out[0].abs().sum() / (x[0].sum() < 99),
            "not finite on .* 1: inf",
        ),
        (lambda out, x: 1.0, "returned float on calibration batch 0, expected a scalar tensor"),
        (
            lambda out, x: (out[0] * (0.0 if x[0].sum() > 99 else 1.0)).abs().sqrt().sum(),
            r"NaN or infinite gradients on calibration batch 1, .* outputs of l\.weight",
        ),
    ],
    ids=["nan", "inf", "no tensor", "gradient"],
)
def test_a_loss_that_says_nothing_is_refused(loss, message):
    model, given = Twice(True).eval(), batches()
    given[1] = (torch.full((20, 8), 1.0), given[1][1])
    palettizer = KMeansPalettizer(model, CONFIG)
    with pytest.raises(CalibrationError, match=message):
        palettizer.calibrate(given, loss=loss)
