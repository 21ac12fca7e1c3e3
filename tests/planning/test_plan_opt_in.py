"""What waits to be asked for, what asks, and what is said of that which stays dense."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from plan_helpers import OURS, bits, plan_of
from plan_models import Computed, Deep, OptIn, TiedEmbedding, Unreached, encoder
from torch import nn
from torch.nn.utils import prune

from palette_core import KMeansPalettizer


def skipped(plan) -> dict[str, str]:
    return {tensor.name: tensor.reason for tensor in plan.skipped}


def dense(plan) -> dict[str, str]:
    return {tensor.name: tensor.reason for tensor in plan.dense}


# --- embeddings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        OURS.K(global_config=OURS.w(3, op_type_config={"embedding": OURS.op(2)})),
        OURS.K(global_config=OURS.w(3, op_type_config={"aten.embedding.default": OURS.op(2)})),
        OURS.K(global_config=OURS.w(3, op_name_config={r"e\.embedding": OURS.op(2)})),
        OURS.K(global_config=OURS.w(3), module_type_configs={nn.Embedding: OURS.w(2)}),
        OURS.K(global_config=OURS.w(3), module_name_configs={"e": OURS.w(2)}),
        OURS.K(global_config=OURS.w(3), module_name_configs={"e": OURS.state(weight=2)}),
    ],
    ids=["op type", "aten op type", "op name", "module type", "module name", "module state"],
)
def test_an_embedding_is_opted_in(config):
    plan = plan_of(OptIn(), config)
    assert bits(plan) == {"e.weight": 2, "lin.weight": 3}
    assert plan.skipped == plan.notes == ()


def test_the_global_config_does_not_opt_in():
    plan = plan_of(OptIn(), OURS.K(global_config=OURS.every(3)))
    assert bits(plan) == {"lin.weight": 3, "lin.bias": 3}
    assert "'embedding' in op_type_config" in dense(plan)["e.weight"]
    assert plan.skipped == plan.notes == ()


def test_a_pattern_does_not_opt_in_but_says_so():
    plan = plan_of(OptIn(), OURS.only(module_name_configs={"e|lin": OURS.w(2)}))
    assert bits(plan) == {"lin.weight": 2}
    assert skipped(plan).keys() == {"e.weight"}
    assert "palettized only when asked for" in skipped(plan)["e.weight"]
    assert "exact name" in skipped(plan)["e.weight"]


def test_an_ancestor_does_not_opt_in():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = OptIn()

        def forward(self, x):
            return self.inner(x)

    model = Outer()
    plan = plan_of(model, OURS.only(module_name_configs={"inner": OURS.w(2)}))
    assert bits(plan) == {"inner.lin.weight": 2}
    assert plan.skipped == ()


def test_norms_matched_by_a_pattern_are_not_worth_a_warning():
    plan = plan_of(encoder(), OURS.only(module_name_configs={r"layers\.0.*": OURS.w(2)}))
    assert len(plan) == 4
    assert plan.skipped == plan.notes == ()


def test_an_explicit_state_is_asked_for():
    config = OURS.K(
        global_config=OURS.M(op_state_spec={"weight_ih_l0": OURS.S(), "weight": OURS.S()})
    )
    plan = plan_of(OptIn(), config)
    assert skipped(plan).keys() == {f"{m}.weight_ih_l0" for m in ("lstm", "gru", "rnn")}
    assert "'lstm' in op_type_config" in skipped(plan)["lstm.weight_ih_l0"]


def test_a_tied_embedding_goes_by_its_linear():
    plan = plan_of(TiedEmbedding())
    assert [owner.name for owner in plan["e.weight"].owners] == ["e.weight", "o.weight"]
    assert plan["e.weight"].op_type == "linear"


# --- recurrent layers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cls", "op"),
    [("lstm", nn.LSTM, "lstm"), ("gru", nn.GRU, "gru"), ("rnn", nn.RNN, "rnn_tanh")],
)
@pytest.mark.parametrize("by", ["module type", "op type", "module name"])
def test_recurrent_layers_are_opted_in(name, cls, op, by):
    config = {
        "module type": OURS.only(module_type_configs={cls: OURS.every(2)}),
        "op type": OURS.K(global_config=OURS.M(op_type_config={op: OURS.every_op(2)})),
        "module name": OURS.only(module_name_configs={name: OURS.every(2)}),
    }[by]
    wanted = {f"{name}.{n}_l0": 2 for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    plan = plan_of(OptIn(), config)
    assert {n: b for n, b in bits(plan).items() if n != "lin.weight"} == wanted
    assert plan.skipped == plan.notes == ()


def test_a_recurrent_layer_without_the_asked_states_is_noted():
    plan = plan_of(OptIn(), OURS.only(module_type_configs={nn.LSTM: OURS.w(2)}))
    assert len(plan) == 0
    (note,) = plan.notes
    assert "LSTM'] palettizes nothing" in note
    assert "lstm.weight_ih_l0" in note


# --- out of reach -------------------------------------------------------------------------------


def test_unreached_weights_are_warned_about():
    plan = plan_of(Unreached())
    assert skipped(plan).keys() == {"b.weight"}
    assert "did not run on example_inputs" in skipped(plan)["b.weight"]
    assert {"e.weight", "norm.weight", "b.bias"} <= dense(plan).keys()
    (message,) = plan.warnings
    assert "b.weight (8, 8) stays dense, though global_config" in message


def test_unreached_weights_that_are_off_are_not():
    plan = plan_of(Unreached(), OURS.K(global_config=OURS.w(3), module_name_configs={"b": None}))
    assert plan.skipped == ()


def test_module_state_reaches_what_did_not_run():
    plan = plan_of(Unreached(), OURS.only(module_name_configs={"b": OURS.state(weight=2)}))
    assert bits(plan) == {"b.weight": 2}
    assert plan["b.weight"].op_type == "linear"


def test_weights_consumed_through_something_computed():
    plan = plan_of(Computed())
    assert skipped(plan).keys() == {"weight"}
    assert "computed from it by 't'" in skipped(plan)["weight"]
    plan = plan_of(Computed(), OURS.only(module_name_configs={"": OURS.state(weight=2)}))
    assert bits(plan) == {"weight": 2}


@pytest.mark.parametrize(
    "config", [OURS.K(), OURS.only(module_type_configs={nn.Linear: OURS.w(2)})]
)
def test_pruned_weights_are_planned_and_others_that_hooks_compute_are_skipped(config):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    prune.l1_unstructured(model[0], "weight", 0.5)
    nn.utils.spectral_norm(model[1])
    plan = plan_of(model, config)
    assert bits(plan).keys() == {"0.weight"}
    assert "spectral_norm" in skipped(plan)["1.weight"]
    nn.utils.remove_spectral_norm(model[1])
    assert len(plan_of(model, config)) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_skipped_with_the_reason():
    scripted = torch.jit.trace(nn.Linear(8, 8), torch.randn(1, 8))
    plan = plan_of(nn.Sequential(nn.Linear(8, 8), scripted))
    assert bits(plan).keys() == {"0.weight"}
    assert "TorchScript" in skipped(plan)["1.weight"]


def test_plain_attributes_are_skipped_with_the_reason():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.randn(8, 8)

        def forward(self, x):
            return nn.functional.linear(x, self.weight)

    assert "register it as a parameter" in skipped(plan_of(Plain()))["weight"]


# --- ordinary models give no warnings ------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
        )
        self.short = nn.Conv2d(channels, 2 * channels, 1, stride, bias=False)

    def forward(self, x):
        return torch.relu(self.body(x) + self.short(x))


def vision() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(2),
        Residual(8, 1),
        Residual(16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return model, (torch.randn(2, 3, 32, 32),)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.norm = nn.Embedding(32, 16), nn.LayerNorm(16)
        self.position = nn.Parameter(torch.randn(1, 8, 16))
        self.start = nn.Parameter(torch.randn(1, 1, 16))
        self.register_buffer("mask", torch.full((8, 8), float("-inf")).triu(1))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        start = self.start.expand(ids.shape[0], -1, -1)
        x = torch.cat([start, self.tokens(ids)], 1) + self.position
        return self.head(self.norm(self.body(x, mask=self.mask[: x.shape[1], : x.shape[1]])))


def language() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Language(), (torch.randint(32, (2, 7)),)


def minilm() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from palette_core.demo.minilm import PACKAGE, load_minilm, tokenize

    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("the demo's model is not installed")
    return load_minilm(), tokenize(["one sentence", "and another one"])


@pytest.mark.parametrize(
    ("make", "count"),
    [(vision, 8), (language, 9)],
    ids=["vision", "language"],
)
@pytest.mark.parametrize("star", [False, True])
def test_ordinary_models_give_no_warnings(make, count, star):
    model, example_inputs = make()
    config = OURS.K(global_config=OURS.every(4)) if star else OURS.K()
    plan = plan_of(model, config, example_inputs=example_inputs)
    assert plan.warnings == ()
    assert len(plan) == count if not star else len(plan) >= count


@pytest.mark.parametrize("star", [False, True])
def test_a_model_that_is_mostly_embeddings_gives_one_warning(star):
    model, example_inputs = minilm()
    config = OURS.K(global_config=OURS.every(4)) if star else OURS.K()
    plan = plan_of(model, config, example_inputs=example_inputs)
    assert len(plan) == (72 if star else 36)
    (message,) = plan.warnings
    assert "47 % of the model's weights are palettized" in message
    assert "dense stay 11,917,824 taken by 'embedding' (" in message
    assert "op_type_config:\n      embedding:" in message


def test_a_training_model_stays_in_training_mode_with_its_statistics():
    model, example_inputs = vision()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    KMeansPalettizer(model).make_plan(example_inputs)
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_deep_has_only_weights_by_default():
    assert set(dense(plan_of(Deep())).values()) == {"no rule names it"}
