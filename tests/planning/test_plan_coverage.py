"""Coverage: how much is palettized, and the lines of config that reach the rest, tried out."""

from __future__ import annotations

import io
import json

import pytest
import torch
import torch.nn.functional as F
from plan_helpers import OURS, bits, plan_of
from torch import Tensor, nn
from torch.nn.utils import prune

from palette_core import KMeansPalettizer, KMeansPalettizerConfig
from palette_core.config import yaml_io
from palette_core.errors import PaletteWarning
from palette_core.reporting import console

X = torch.linspace(-1, 1, 3 * 16).reshape(3, 16)


def masked(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.5)


def normed(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


class Products(nn.Module):
    """Two blocks, each with a linear layer and one weight that its ``function`` consumes."""

    def __init__(self, function, *shape: int, name: str = "weight") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Product(function, shape, name) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Product(nn.Module):
    def __init__(self, function, shape: tuple[int, ...], name: str) -> None:
        super().__init__()
        self.function, self.name = function, name
        self.linear = nn.Linear(16, 16)
        self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(x, getattr(self, self.name)))


IDS = torch.tensor([1, 0, 3])
EACH = torch.tensor([1, 2, 2, 3], dtype=torch.int32)

# What consumes the weight, its shape, and the axis of its output channels.
FUNCTIONS = {
    "addmm": (lambda x, w: torch.addmm(x[0], x, w[:, :16]) * 0 + torch.addmm(x[0], x, w), (16, 16)),
    "matmul": (lambda x, w: (x @ w)[..., :16], (16, 64)),
    "matmul, left": (lambda x, w: (w @ x.mT).mT[:, :16], (64, 16)),
    "mm": (lambda x, w: torch.mm(x, w)[:, :16], (16, 64)),
    "bmm": (lambda x, w: torch.bmm(x.expand(4, 3, 16), w).sum(0), (4, 16, 16)),
    "baddbmm": (lambda x, w: torch.baddbmm(x, x.expand(4, 3, 16), w).sum(0), (4, 16, 16)),
    "einsum": (lambda x, w: torch.einsum("ni,io->no", x, w)[:, :16], (16, 64)),
    "einsum of experts": (lambda x, w: torch.einsum("ni,eoi->no", x, w), (4, 16, 16)),
    "grouped": (lambda x, w: F.grouped_mm(x, w, offs=EACH), (4, 16, 16)),
    "grouped, turned": (lambda x, w: F.grouped_mm(x, w.transpose(1, 2), offs=EACH), (4, 16, 16)),
    "an expert": (lambda x, w: F.linear(x, w[1]) + F.linear(x, w[2]), (4, 16, 16)),
    "an expert, turned": (lambda x, w: x @ w[3], (4, 16, 16)),
    "picked": (lambda x, w: torch.bmm(x[:, None], w[IDS])[:, 0], (4, 16, 16)),
    "picked, turned": (
        lambda x, w: torch.bmm(w.index_select(0, IDS), x[..., None])[..., 0],
        (4, 16, 16),
    ),
    "unbound": (lambda x, w: sum(F.linear(x, part) for part in w.unbind()), (4, 16, 16)),
    "turned": (lambda x, w: F.linear(x, w.t())[:, :16], (16, 64)),
    "copied": (lambda x, w: F.linear(x, w.t().contiguous())[:, :16], (16, 64)),
}
AXES = {
    "addmm": 1, "matmul": 1, "matmul, left": 0, "mm": 1, "bmm": 2, "baddbmm": 2, "einsum": 1,
    "einsum of experts": 1, "grouped": 2, "grouped, turned": 1, "an expert": 1,
    "an expert, turned": 2, "picked": 2, "picked, turned": 1, "unbound": 1, "turned": 1,
    "copied": 1,
}  # fmt: skip


def with_advice(plan, config: KMeansPalettizerConfig | None = None) -> KMeansPalettizerConfig:
    """Return a config with the lines of the warning added, as a user adds them."""
    (message,) = plan.warnings
    lines = message.partition("added to the config:\n\n")[2]
    assert lines == plan.coverage.yaml
    advice = KMeansPalettizerConfig.from_yaml(io.StringIO(lines))
    if config is None:
        return advice
    both = config.to_dict()
    merge(both, plan.coverage.config)
    return KMeansPalettizerConfig.from_dict(both)


def merge(into: dict, more: dict) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


@pytest.mark.parametrize("name", ["weight", "kernel"])
@pytest.mark.parametrize("case", FUNCTIONS)
def test_what_stays_dense_is_said_with_the_lines_that_reach_it(case, name) -> None:
    model = Products(*FUNCTIONS[case][:1], *FUNCTIONS[case][1], name=name)
    plan = plan_of(model, example_inputs=(X,))
    weights = {f"blocks.{i}.{name}" for i in range(2)}
    assert not weights & bits(plan).keys()
    if plan.skipped:  # an ordinary weight that something is computed from, told one by one
        assert {skipped.name for skipped in plan.skipped} == weights
        return
    assert plan.coverage.palettized == 2 * 256
    assert plan.coverage.elements == 2 * (256 + model.blocks[0].get_parameter(name).numel())
    if not plan.coverage.is_low:
        return
    (message,) = plan.warnings
    assert "blocks.0." + name + " and 1 more" in message
    better = plan_of(model, with_advice(plan), example_inputs=(X,))
    assert bits(better).keys() == {*bits(plan), *weights}
    assert better.warnings == ()
    assert {better[weight].axis for weight in weights} == {AXES[case]}


def test_the_lines_keep_what_the_config_says_already() -> None:
    def experts(x: Tensor, w: Tensor) -> Tensor:
        return F.grouped_mm(x, w.transpose(1, 2), offs=EACH)

    model = Products(experts, 4, 16, 16, name="experts")
    groups = OURS.S(n_bits=6, granularity=OURS.G(group_size=8))
    for config in (
        OURS.K(global_config=OURS.M(op_state_spec={"weight": groups})),
        OURS.K(module_type_configs={Product: OURS.M(op_state_spec={"weight": groups})}),
        OURS.K(module_name_configs={r"blocks\..*": OURS.M(op_state_spec={"weight": groups})}),
    ):
        plan = plan_of(model, config, example_inputs=(X,))
        assert bits(plan) == {"blocks.0.linear.weight": 6, "blocks.1.linear.weight": 6}
        better = plan_of(model, with_advice(plan, config), example_inputs=(X,))
        assert set(bits(better).values()) == {6}
        assert len(better) == 4
        assert {tensor.granularity for tensor in better} == {"8 × axis 0", "8 × axis 1"}
        assert better.warnings == ()


def test_groups_that_do_not_divide_a_weight_are_not_in_its_lines() -> None:
    model = Products(lambda x, w: (x @ w)[:, :16], 16, 60, name="w")
    config = OURS.K(
        global_config=OURS.M(op_state_spec={"weight": OURS.S(granularity=OURS.G(group_size=16))})
    )
    plan = plan_of(model, config, example_inputs=(X,))
    better = plan_of(model, with_advice(plan, config), example_inputs=(X,))
    assert better["blocks.0.w"].granularity == "per tensor"


def test_what_a_rule_leaves_alone_is_not_counted() -> None:
    model = Products(lambda x, w: (x @ w)[:, :16], 16, 64)
    for config in (
        OURS.K(global_config=OURS.M(op_type_config={"matmul": None})),
        OURS.K(global_config=None, module_name_configs={r"blocks\.0\.linear": OURS.w(3)}),
        OURS.K(global_config=OURS.M(op_state_spec={}, op_type_config={"linear": OURS.op(3)})),
    ):
        coverage = plan_of(model, config, example_inputs=(X,)).coverage
        assert coverage.elements == coverage.palettized > 0
        assert coverage.yaml == ""


def test_reports_and_plans_have_the_coverage(capsys) -> None:
    model = Products(lambda x, w: (x @ w)[:, :16], 16, 64, name="w")
    palettizer = KMeansPalettizer(model)
    with pytest.warns(PaletteWarning, match=r"20 % of the model's weights are palettized, 512 of"):
        palettizer.prepare((X,))
    found = json.loads(json.dumps(palettizer.report.to_dict()))["coverage"]
    assert found["elements"] == 2560
    assert found["palettized"] == 512
    (dense,) = found["dense"]
    assert (dense["op_type"], dense["elements"]) == ("matmul", 2048)
    assert dense["names"] == ["blocks.0.w", "blocks.1.w"]
    config = KMeansPalettizerConfig.from_dict(found["config"])
    assert config.global_config.op_type_config["matmul"].op_state_spec["w"].n_bits == 4
    console.plan(palettizer.plan, as_json=True)
    assert json.loads(capsys.readouterr().out)["coverage"] == found
    console.plan(palettizer.plan, as_json=False)
    shown = capsys.readouterr().out
    assert "20 % of the model's weights" in shown
    assert yaml_io.dump(found["config"], None) in shown
    console.report(palettizer.report)
    assert "2,048 taken by 'matmul' (blocks.0.w and 1 more)" in capsys.readouterr().out


def test_biases_of_experts_are_not_in_the_lines() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(8, 32, 16))
            self.up_bias = nn.Parameter(torch.randn(8, 16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x @ self.up[e] + self.up_bias[e] for e in range(8)]).sum(0)

    model = nn.Sequential(nn.Linear(16, 32), Experts())
    plan = plan_of(model, example_inputs=(X,))
    assert [group.names for group in plan.coverage.dense] == [("1.up",), ("1.up_bias",)]
    better = plan_of(model, with_advice(plan), example_inputs=(X,))
    assert bits(better) == {"0.weight": 4, "1.up": 4}
    assert better["1.up"].axis == 2


def test_lines_for_a_module_and_for_operations_inside_of_it_go_together() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.randn(8, 16, 16))
            self.kernel = nn.Parameter(torch.randn(16, 16))
            self.inner = Product(lambda x, w: (x @ w)[:, :16], (16, 64), "w")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x @ self.experts[0] @ self.kernel)

    model = nn.Sequential(Both(), Product(lambda x, w: (x @ w)[:, :16], (16, 64), "w"))
    groups = OURS.S(n_bits=6, granularity=OURS.G(group_size=8))
    config = OURS.K(global_config=OURS.M(op_state_spec={"weight": groups}))
    plan = plan_of(model, config, example_inputs=(X,))
    better = plan_of(model, with_advice(plan, config), example_inputs=(X,))
    assert bits(better) == dict.fromkeys(
        ["0.experts", "0.kernel", "0.inner.w", "0.inner.linear.weight", "1.w", "1.linear.weight"], 6
    )
    assert better.warnings == ()


# --- adapters -----------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A layer beside a low-rank adapter, as libraries put them."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(16, 16)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(16, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, 16, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_adapters_stay_dense_with_a_note_until_they_are_named() -> None:
    model = nn.Sequential(Adapted(), nn.ReLU(), Adapted())
    plan = plan_of(model, example_inputs=(X,))
    assert bits(plan) == {"0.base_layer.weight": 4, "2.base_layer.weight": 4}
    (note,) = plan.notes
    assert "0.lora_A.default.weight and 3 more" in note
    assert plan.coverage.palettized == plan.coverage.elements == 512
    for config in (
        OURS.K(global_config=OURS.w(4), module_name_configs={r".*\.lora_[AB]\..*": OURS.w(8)}),
        OURS.K(global_config=OURS.w(4), module_name_configs={".*lora.*": OURS.w(8)}),
    ):
        named = plan_of(model, config, example_inputs=(X,))
        assert bits(named) == bits(plan) | {
            f"{i}.lora_{part}.default.weight": 8 for i in (0, 2) for part in "AB"
        }
    everything = OURS.K(module_name_configs={".*": OURS.w(3)})
    assert bits(plan_of(model, everything, example_inputs=(X,))) == dict.fromkeys(bits(plan), 3)


@pytest.mark.parametrize("name", ["lora_a", "lora_up", "up_lora", "lora", "hada_w1_a"])
def test_names_of_adapters(name) -> None:
    model = nn.Sequential()
    model.add_module(name, nn.Linear(16, 16))
    assert bits(plan_of(model, example_inputs=(X,))) == {}


@pytest.mark.parametrize("name", ["flora", "lorax", "explorability", "linear", "a"])
def test_names_of_no_adapters(name) -> None:
    model = nn.Sequential()
    model.add_module(name, nn.Linear(16, 16))
    assert bits(plan_of(model, example_inputs=(X,))) == {f"{name}.weight": 4}


# --- palettes that are too large ----------------------------------------------------------------


def test_palettes_larger_than_their_weights_are_told_with_a_smaller_spec() -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 32, 3))
    groups = OURS.S(n_bits=8, granularity=OURS.G(group_size=1))
    config = OURS.K(module_name_configs={"0": OURS.M(op_state_spec={"weight": groups})})
    x = torch.randn(1, 32, 8, 8)
    palettizer = KMeansPalettizer(model, config)
    plan = palettizer.make_plan((x,))
    (note,) = plan.notes
    assert note.startswith("palettes larger than their weights: 0.weight (32, 1, 3, 3) (")
    said = note.partition("takes ")[2].split(" bits")[0]
    with pytest.warns(PaletteWarning, match="larger than their weights"):
        palettizer.prepare((x,))
    row = next(row for row in palettizer.report.tensors if row.name == "0.weight")
    assert float(said) == pytest.approx(8 * row.palettized_bytes / 288, abs=0.1)
    # What is proposed is smaller than the weight.
    fields = eval(note.partition("instead of 32; ")[2].partition(" would take ")[0])
    smaller = OURS.S(**{**groups.model_dump(), **fields})
    config = OURS.K(module_name_configs={"0": OURS.M(op_state_spec={"weight": smaller})})
    other = KMeansPalettizer(nn.Sequential(nn.Conv2d(32, 32, 3, groups=32)), config)
    other.prepare((x,))
    (row,) = other.report.tensors
    assert row.palettized_bytes < row.dense_bytes


def test_the_smaller_spec_keeps_the_bits_where_larger_groups_are_enough() -> None:
    model = nn.Conv2d(960, 960, 3, groups=960)
    groups = OURS.S(n_bits=8, granularity=OURS.G(group_size=1))
    config = OURS.K(global_config=OURS.M(op_state_spec={"weight": groups}))
    (note,) = plan_of(model, config, example_inputs=(torch.randn(1, 960, 4, 4),)).notes
    assert "'group_size': 64}} would take 22.2" in note
    assert "takes 918.2 bits per weight instead of 32" in note


def test_small_weights_and_small_palettes_are_not_told() -> None:
    plan = plan_of(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)),
        OURS.K(global_config=OURS.w(4)),
        example_inputs=(torch.ones(1, 8),),
    )
    assert plan.notes == ()


@pytest.mark.parametrize("make", [masked, normed])
def test_parts_that_hooks_compute_weights_from_are_no_weights_of_their_own(make):
    plan = plan_of(make(nn.Linear(16, 16)), example_inputs=(X,))
    assert [tensor.name for tensor in plan] == ["weight"]
    assert (plan.coverage.elements, plan.coverage.palettized) == (256, 256)
    assert plan.coverage.config == {}
