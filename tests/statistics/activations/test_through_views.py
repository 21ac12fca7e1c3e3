"""Moments of weights that operations receive as views, against sums by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.model import trace
from palette_core.planning import make_plan
from palette_core.plugins import get_catalog
from palette_core.statistics.activations import Runner, collect

SPEC = {"n_bits": 2, "algorithm": "lnq", "enable_per_channel_scale": False}


def config(**spec) -> KMeansPalettizerConfig:
    module = {"module_state_spec": {"w": {**SPEC, **spec}}}
    return KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"module_name_configs": {".*": module}}}
    )


def batches(n: int = 3) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-1, 1, 8)
    return [(torch.randn(12, 8, generator=generator) * scale,) for _ in range(n)]


class Views(nn.Module):
    """A weight ``w``, and ``function`` of an input and the weight."""

    def __init__(self, function, *shape: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.w, self.function = nn.Parameter(torch.randn(shape)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w)


def routed(x: Tensor) -> list[Tensor]:
    """Return the inputs of four experts: the last gets none."""
    chosen = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return [x[chosen == expert] for expert in range(4)]


def experts(x: Tensor, w: Tensor, product) -> Tensor:
    return torch.cat([product(part, w[e]) for e, part in enumerate(routed(x)) if len(part)])


ENDS = torch.tensor([3, 7, 12], dtype=torch.int32)
# The function, the shape of the weight, and the inputs of each of its matrices.
CASES = {
    "transposed": (lambda x, w: F.linear(x, w.t()), (8, 6), lambda x: [x]),
    "transposed, matmul": (lambda x, w: x @ w.mT, (6, 8), lambda x: [x]),
    "experts": (lambda x, w: experts(x, w, F.linear), (4, 6, 8), routed),
    "experts, matmul": (lambda x, w: experts(x, w, torch.matmul), (4, 8, 6), routed),
    "experts, transposed": (
        lambda x, w: experts(x, w.transpose(1, 2), F.linear), (4, 8, 6), routed,
    ),
    "experts, left": (
        lambda x, w: experts(x, w, lambda part, one: (one @ part.mT).mT), (4, 6, 8), routed,
    ),
    "unbound": (
        lambda x, w: sum(F.linear(x, one) for one in w.unbind()), (3, 6, 8), lambda x: [x] * 3,
    ),
    "stacked": (
        lambda x, w: torch.bmm(x.expand(3, 12, 8), w.transpose(1, 2)), (3, 6, 8),
        lambda x: [x] * 3,
    ),
    "grouped": (
        lambda x, w: F.grouped_mm(x, w.transpose(1, 2), offs=ENDS), (3, 16, 8),
        lambda x: [x[:3], x[3:7], x[7:]],
    ),
}  # fmt: skip


def found(model: nn.Module):
    plan = make_plan(trace(model, batches()[0]), config(), get_catalog())
    assert [tensor.name for tensor in plan] == ["w"]
    moments, missing = collect(Runner(model, tuple(plan), batches()))
    assert missing == {}
    return moments["w"]


@pytest.mark.parametrize("case", CASES)
def test_moments_are_those_of_each_matrix(case) -> None:
    function, shape, inputs = CASES[case]
    model = Views(function, *shape)
    moments = found(model)
    wanted = 0
    for (x,) in batches():
        wanted = wanted + torch.stack([part.mT.double() @ part.double() for part in inputs(x)])
    hessian = moments.hessian.double() * moments.count
    torch.testing.assert_close(hessian, wanted.expand_as(hessian), rtol=1e-5, atol=1e-6)
    # Rows times inputs are what the operation computes.
    matrices = moments.to_matrices(model.w.detach())
    x = batches()[0][0]
    parts = [p @ m.mT for p, m in zip(inputs(x), matrices, strict=False) if len(p)]
    if case == "stacked":
        wanted = torch.stack(parts)
    elif case == "unbound":
        wanted = sum(parts)
    else:
        wanted = torch.cat(parts)
    torch.testing.assert_close(model(x).detach(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_outputs_come_nearer_than_without_data(case, sequential) -> None:
    errors = {}
    for algorithm in ("kmeans1d", "lnq"):
        function, shape, _ = CASES[case]
        model = Views(function, *shape)
        wanted = [model(x).detach() for (x,) in batches()]
        palettizer = KMeansPalettizer(model, config(algorithm=algorithm))
        if algorithm == "lnq":
            palettizer.calibrate(batches(), sequential=sequential)
        palettizer.prepare(batches()[0])
        (row,) = palettizer.report.tensors
        assert row.algorithm == algorithm
        errors[algorithm] = sum(
            float((model(x) - y).square().sum()) for (x,), y in zip(batches(), wanted, strict=True)
        )
    assert errors["lnq"] < errors["kmeans1d"]


def test_two_weights_with_the_same_inputs_at_other_experts_share_nothing() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = (nn.Parameter(torch.randn(2, 6, 8)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.w[0]) + F.linear(x, self.v[1])

    spec = {"w": SPEC, "v": SPEC}
    rules = KMeansPalettizerConfig.from_dict(
        {
            "kmeans_palettization_config": {
                "module_name_configs": {".*": {"module_state_spec": spec}}
            }
        }
    )
    model = Two()
    plan = make_plan(trace(model, batches()[0]), rules, get_catalog())
    moments, _ = collect(Runner(model, tuple(plan), batches()))
    assert bool((moments["w"].hessian[1] == 0).all())
    assert bool((moments["v"].hessian[0] == 0).all())
    torch.testing.assert_close(moments["w"].hessian[0], moments["v"].hessian[1])


def test_what_is_picked_is_clustered_without_data_and_said() -> None:
    ids = torch.tensor([0, 1, 1, 0, 2, 2, 0, 0, 1, 1, 2, 2])
    model = Views(lambda x, w: torch.bmm(w[ids], x[..., None])[..., 0], 3, 6, 8)
    palettizer = KMeansPalettizer(model, config())
    palettizer.calibrate(batches())
    with pytest.warns(Warning, match=r"w.*'__getitem__'"):
        palettizer.prepare(batches()[0])
