"""The output-channel axis of products, by what changes when one channel does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig

GROUPED = getattr(F, "grouped_mm", None) or torch._grouped_mm
ENDS = torch.tensor([2, 4, 6], dtype=torch.int32)
# operation: formula of x and W, shape of W, x, the axis, and by which op type it is named
CASES = {
    "matmul": (lambda x, w: x @ w, (8, 16), (6, 8), 1, "matmul"),
    "matmul, left": (lambda x, w: w @ x, (16, 8), (8, 6), 0, "matmul"),
    "matmul, stacked": (lambda x, w: x @ w, (3, 8, 16), (3, 6, 8), 2, "matmul"),
    "mm": (torch.mm, (8, 16), (6, 8), 1, "mm"),
    "mm, left": (lambda x, w: torch.mm(w, x), (16, 8), (8, 6), 0, "mm"),
    "addmm": (lambda x, w: torch.addmm(w.new_zeros(16), x, w), (8, 16), (6, 8), 1, "addmm"),
    "bmm": (torch.bmm, (3, 8, 16), (3, 6, 8), 2, "bmm"),
    "bmm, left": (lambda x, w: torch.bmm(w, x), (3, 16, 8), (3, 8, 6), 1, "bmm"),
    "baddbmm": (
        lambda x, w: torch.baddbmm(w.new_zeros(3, 1, 16), x, w),
        (3, 8, 16),
        (3, 6, 8),
        2,
        "baddbmm",
    ),
    "grouped_mm": (lambda x, w: GROUPED(x, w, offs=ENDS), (3, 8, 16), (6, 8), 2, "grouped_mm"),
    "einsum": (lambda x, w: torch.einsum("bi,io->bo", x, w), (8, 16), (6, 8), 1, "einsum"),
    "einsum, rows": (lambda x, w: torch.einsum("oi,bi->bo", w, x), (16, 8), (6, 8), 0, "einsum"),
    "einsum, experts": (
        lambda x, w: torch.einsum("ebi,eio->ebo", x, w),
        (3, 8, 16),
        (3, 6, 8),
        2,
        "einsum",
    ),
    "einsum, heads": (
        lambda x, w: torch.einsum("bd,dhk->bhk", x, w),
        (8, 2, 4),
        (6, 8),
        1,
        "einsum",
    ),
    "einsum, by default": (lambda x, w: torch.einsum("bi,io", x, w), (8, 16), (6, 8), 1, "einsum"),
    "linear of a transpose": (lambda x, w: F.linear(x, w.t()), (8, 16), (6, 8), 1, None),
    "linear of an expert": (lambda x, w: F.linear(x, w[1]), (3, 16, 8), (6, 8), 1, None),
    "a transpose of experts": (lambda x, w: x @ w.mT, (3, 16, 8), (3, 6, 8), 1, None),
}


class Layer(nn.Module):
    def __init__(self, formula, shape) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(*shape))
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x, self.weight)


def plan_of(layer: Layer, x: Tensor, op_type: str | None, **spec):
    states = {"op_state_spec": {"weight": {"n_bits": 2, **spec}}}
    named = {"op_type_config": {op_type: states}}
    if op_type is None:  # operations receive a view
        layer = nn.Sequential(layer)
        rules = {"module_name_configs": {"0": {"module_state_spec": states["op_state_spec"]}}}
    else:
        rules = {"global_config": named}
    config = KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": rules})
    palettizer = KMeansPalettizer(layer, config)
    (plan,) = palettizer.make_plan((x,))
    return palettizer, plan


@pytest.mark.parametrize("name", CASES)
def test_one_channel_of_it_changes_one_channel_of_the_output(name) -> None:
    formula, shape, x_shape, axis, op_type = CASES[name]
    layer, x = Layer(formula, shape), torch.randn(*x_shape)
    _, plan = plan_of(layer, x, op_type)
    assert plan.axis == axis
    with torch.no_grad():
        before = layer(x)
        layer.weight.select(axis, 1).add_(1.0)
        changed = layer(x) != before
    # By some axis of the output, one index is all that changes.
    others = (changed.movedim(a, 0).flatten(1).any(1) for a in range(changed.dim()))
    assert any(int(along.sum()) == 1 and len(along) == shape[axis] for along in others)


@pytest.mark.parametrize("name", ["addmm", "matmul", "mm", "einsum", "bmm", "grouped_mm"])
@pytest.mark.parametrize("how", ["groups", "scales"])
def test_channels_of_different_sizes_keep_their_outputs(name, how) -> None:
    formula, shape, x_shape, axis, op_type = CASES[name]
    layer, x = Layer(formula, shape), torch.randn(*x_shape)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-2, 1, shape[axis]))
    dense = layer(x).detach()
    spec = {"enable_per_channel_scale": True}
    if how == "groups":
        spec = {"granularity": {"type": "per_grouped_channel", "group_size": 2}}
    palettizer, _ = plan_of(layer, x, op_type, **spec, n_bits=4)
    palettizer.prepare((x,))
    error = (layer(x) - dense).square().flatten(0, -2).sum(0) / dense.square().flatten(0, -2).sum(0)
    assert float(error.mean()) < 0.05  # along the input axis it is above 0.5


def test_elementwise_and_tables_stay_at_axis_0() -> None:
    rules = {"embedding": {}, "mul": {"op_state_spec": {"*": {"n_bits": 2}}}}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 4)
            self.gain = nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x) * self.gain

    config = KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": {"op_type_config": rules}}}
    )
    plan = KMeansPalettizer(Model(), config).make_plan((torch.arange(6),))
    assert {t.name: t.axis for t in plan} == {"table.weight": 0, "gain": 0}
