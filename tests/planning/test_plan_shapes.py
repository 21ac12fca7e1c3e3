"""Shapes and dtypes that a spec does not fit, axes, and graphs made by hand."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from plan_helpers import OURS, bits, every, plan_of
from plan_models import Deep, Transposed
from torch import nn

from palette_core import KMeansPalettizer, PalettizationSpec, PerGroupedChannelGranularity
from palette_core.errors import PlanError
from palette_core.model.graph import ModelGraph, ModuleRecord, Owner, TensorRecord, Use
from palette_core.planning import Plan, TensorPlan, make_plan
from palette_core.plugins.catalog import get_catalog

G = PerGroupedChannelGranularity


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (PalettizationSpec(granularity=G(axis=0, group_size=3)), "group_size 3 does not divide"),
        (PalettizationSpec(granularity=G(axis=1, group_size=5)), "the 8 channels of axis 1"),
        (PalettizationSpec(cluster_dim=3), "cluster_dim 3 does not divide"),
        (
            PalettizationSpec(cluster_dim=4, granularity=G(axis=0, group_size=2)),
            "cluster_dim 4 does not divide",
        ),
    ],
)
def test_incompatible_shapes(spec, reason):
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    plan = plan_of(model, every(spec))
    assert len(plan) == 0
    assert plan.notes == ()
    assert [t.name for t in plan.skipped] == ["0.weight", "1.weight"]
    assert all(reason in t.reason for t in plan.skipped)
    (told,) = plan.warnings  # one, whose lines name them
    assert [line.split(", ")[:2] for line in told.split("\n")] == [
        ["0.weight (8", "8) stays dense"],
        ["1.weight (8", "8) stays dense"],
    ]
    with pytest.raises(PlanError) as error:
        plan_of(model, every(spec), on_incompatible="error")
    assert all(f"{name} (8, 8)" in str(error.value) for name in ("0.weight", "1.weight"))
    assert reason in str(error.value)


def test_on_incompatible_is_checked():
    with pytest.raises(PlanError, match="'skip' or 'error', got 'ignore'"):
        plan_of(Deep(), on_incompatible="ignore")


def test_the_model_is_whole_when_the_plan_is_refused():
    model = Deep()
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    config = every(granularity=G(axis=0, group_size=3))
    with pytest.raises(PlanError):
        KMeansPalettizer(model, config).prepare((torch.randn(1, 2, 8),), on_incompatible="error")
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(id(after[n]) == i and torch.equal(after[n], p) for n, (i, p) in before.items())


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"granularity": G(axis=0, group_size=4)}, True),
        ({"granularity": G(group_size=4)}, True),
        ({"granularity": G(axis=1, group_size=4)}, False),
        ({"granularity": G(axis=0, group_size=8), "cluster_dim": 2}, True),
        ({"cluster_dim": 2}, True),
        ({"enable_per_channel_scale": True}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("module", [nn.Linear(8, 8), nn.ConvTranspose1d(8, 8, 1)])
def test_a_bias_under_star(fields, kept, module):
    x = torch.randn(1, 8, 8)
    plan = plan_of(module, every(**fields), example_inputs=(x,))
    assert ("bias" in bits(plan)) is kept
    assert "weight" in bits(plan)
    assert [t.name for t in plan.skipped] == ([] if kept else ["bias"])
    if kept:
        assert plan["bias"].axis == plan["bias"].layout.vector_axis == 0


@pytest.mark.parametrize("state", [False, True])
def test_axis_defaults(state):
    spec = PalettizationSpec(granularity=G(group_size=2))
    config = (
        OURS.only(
            module_name_configs={
                "[ct].": OURS.M(op_state_spec=None, module_state_spec={"weight": spec})
            }
        )
        if state
        else OURS.K(global_config=OURS.M(op_state_spec={"weight": spec}))
    )
    plan = plan_of(Transposed(), config)
    for name in ("c1", "c2", "c3"):
        assert (plan[f"{name}.weight"].axis, plan[f"{name}.weight"].layout.grid[:2]) == (0, (2, 1))
    for name in ("t1", "t2", "t3"):
        assert (plan[f"{name}.weight"].axis, plan[f"{name}.weight"].layout.grid[:2]) == (1, (1, 4))
    assert plan["t2.weight"].op_type == "conv_transpose2d"


def test_an_unreached_transposed_convolution_has_its_axis():
    model = Deep()
    model.extra = nn.ConvTranspose2d(4, 8, 1)
    config = OURS.only(module_name_configs={"extra": OURS.state(weight=2)})
    assert plan_of(model, config)["extra.weight"].axis == 1


class Odd(nn.Module):
    """States that have no palette."""

    def __init__(self):
        super().__init__()
        self.register_buffer("integers", torch.ones(8, 8, dtype=torch.int64))
        self.register_buffer("complexes", torch.ones(8, 8, dtype=torch.complex64))
        self.register_buffer("bytes", torch.ones(8, 8).to(torch.float8_e4m3fn))
        self.one = nn.Parameter(torch.ones(1, 1))
        self.scalar = nn.Parameter(torch.ones(()))
        self.empty = nn.Parameter(torch.ones(0, 8))
        self.lin = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(self.lin(x), self.bytes.float())


def test_tensors_without_a_palette():
    names = ("integers", "complexes", "bytes", "one", "scalar", "empty")
    plan = plan_of(
        Odd(), OURS.only(module_name_configs={"": OURS.state(**dict.fromkeys(names, 2))})
    )
    reasons = {t.name: t.reason for t in plan.skipped}
    assert len(plan) == 0
    assert "int64" in reasons["integers"]
    assert "complex64" in reasons["complexes"]
    assert "one byte per weight" in reasons["bytes"]
    assert all("one element or none" in reasons[n] for n in ("one", "scalar", "empty"))


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple),
    group=st.integers(1, 6),
    axis=st.sampled_from([None, 0, 1]),
    cluster_dim=st.integers(1, 4),
    op=st.sampled_from(["linear", "conv2d", "conv_transpose2d"]),
    scale=st.booleans(),
)
def test_any_shape_is_planned_or_skipped(shape, group, axis, cluster_dim, op, scale):
    """Whether a spec fits is simple arithmetic on the shape; planning never fails otherwise."""
    spec = PalettizationSpec(
        granularity=G(axis=axis, group_size=group),
        cluster_dim=cluster_dim,
        enable_per_channel_scale=scale,
    )
    graph = by_hand(shape=shape, op=op)
    plan = make_plan(graph, every(spec), get_catalog())
    channels = 1 if op == "conv_transpose2d" and len(shape) > 1 else 0
    grouped = channels if axis is None else axis
    fits = grouped < len(shape) and shape[grouped] % group == 0 and (len(shape) > 1 or not scale)
    if fits:
        along = group if grouped == channels else shape[channels]
        fits = along % cluster_dim == 0 and torch.Size(shape).numel() > 1
    assert (len(plan), len(plan.skipped)) == ((1, 0) if fits else (0, 1))
    for tensor in plan:
        x = torch.arange(torch.Size(shape).numel()).reshape(shape)
        assert torch.equal(tensor.layout.merge(tensor.layout.split(x)), x)


# --- without a model ----------------------------------------------------------------------------


def by_hand(
    shape: tuple[int, ...] = (8, 4), op: str = "linear", dtype: torch.dtype = torch.float32
) -> ModelGraph:
    return ModelGraph(
        modules=(
            ModuleRecord(("",), "a.checkpoint.Model"),
            ModuleRecord(("layer",), "torch.nn.modules.linear.Linear"),
        ),
        tensors=(
            TensorRecord(
                owners=(Owner("layer", "weight"),),
                shape=shape,
                dtype=dtype,
                kind="parameter",
                uses=(Use("layer", op, f"layer.{op}"),),
            ),
        ),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_graph_made_by_hand(dtype):
    plan = make_plan(by_hand(dtype=dtype), OURS.K(), get_catalog())
    (tensor,) = plan
    assert (tensor.name, tensor.shape, tensor.dtype) == ("layer.weight", (8, 4), dtype)
    assert tensor.layout.grid == (1, 1)
    assert plan.notes == plan.skipped == plan.dense == ()


def test_a_graph_made_by_hand_has_every_module():
    graph = by_hand()
    with pytest.raises(PlanError, match=r"'layer\.weight' hangs in module 'layer'.*ModuleRecord"):
        ModelGraph(graph.modules[:1], graph.tensors)


def test_a_use_in_a_module_that_is_not_listed_goes_by_the_owner():
    graph = by_hand()
    tensor = TensorRecord(
        graph.tensors[0].owners,
        (8, 4),
        torch.float32,
        "parameter",
        (Use("elsewhere", "linear", "elsewhere.linear"),),
    )
    graph = ModelGraph(graph.modules, (tensor,))
    config = OURS.K(global_config=OURS.w(3, op_name_config={r"elsewhere\.linear": OURS.op(8)}))
    assert bits(make_plan(graph, config, get_catalog())) == {"layer.weight": 8}


def test_plans_pickle():
    config = OURS.K(
        global_config=OURS.w(3, pat_schedule=None),
        module_name_configs={"a": every(cluster_dim=2).global_config},
    )
    plan = plan_of(Deep(), config)
    again = pickle.loads(pickle.dumps(plan))
    assert isinstance(again, Plan)
    assert again == plan
    assert all(isinstance(tensor, TensorPlan) for tensor in again)
    assert again["a.weight"].facts == plan["a.weight"].facts
    assert again["a.weight"].algorithm == "kmeans_vector"
