"""Which rule decides: the precedence table, case by case."""

from __future__ import annotations

import pytest
from plan_cases import CASES, Case
from plan_helpers import OURS, bits, plan_of
from plan_models import Deep, Shared, Tied
from torch import nn

from palette_core import KMeansPalettizerConfig, ModuleKMeansPalettizerConfig, PATSchedule

K, M = KMeansPalettizerConfig, ModuleKMeansPalettizerConfig


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case):
    model = case.model()
    config = case.config(OURS)
    before = config.to_dict()
    plan = plan_of(model, config)
    assert bits(plan) == case.bits
    assert config.to_dict() == before
    seen = {t.name for t in (*plan.tensors, *plan.skipped, *plan.dense)}
    assert case.bits.keys() <= seen
    assert all(t.reason for t in (*plan.skipped, *plan.dense))
    assert len(seen) == len(plan.tensors) + len(plan.skipped) + len(plan.dense)


@pytest.mark.peer
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_reference_agrees(case: Case):
    from plan_peer import reference_bits

    same = reference_bits(case) == case.bits
    assert same != bool(case.differs)


def test_the_deciding_rule_is_named():
    config = OURS.K(
        global_config=OURS.w(3, op_name_config={r"c\.0\.linear": OURS.op(2)}),
        module_type_configs={nn.Sequential: OURS.w(4, op_type_config={"linear": OURS.op(6)})},
        module_name_configs={r"b\.0": OURS.state(weight=8)},
    )
    rules = {tensor.name: tensor.rule for tensor in plan_of(Deep(), config)}
    container = "module_type_configs['torch.nn.modules.container.Sequential']"
    assert rules == {
        "a.weight": "global_config.op_state_spec['weight']",
        "b.0.weight": r"module_name_configs['b\\.0'].module_state_spec['weight']",
        "b.1.0.weight": f"{container}.op_type_config['linear'].op_state_spec['weight']",
        "c.0.weight": r"global_config.op_name_config['c\\.0\\.linear'].op_state_spec['weight']",
    }


def test_what_is_left_alone_names_the_rule():
    plan = plan_of(Deep(), OURS.K(global_config=OURS.w(3), module_name_configs={"b": None}))
    dense = {tensor.name: tensor.reason for tensor in plan.dense}
    assert dense["b.0.weight"] == "left alone by module_name_configs['b'].op_state_spec['*']"
    assert dense["a.bias"] == "no rule names it"


@pytest.mark.parametrize(
    "key",
    ["torch.nn.Linear", "torch.nn.modules.linear.Linear", nn.Linear],
)
def test_every_spelling_of_a_type_matches(key):
    plan = plan_of(Deep(), OURS.only(module_type_configs={key: OURS.w(2)}))
    assert len(plan) == 4
    assert plan.notes == ()


@pytest.mark.parametrize("key", ["linear", "aten.linear.default", "torch.nn.functional.linear"])
def test_every_spelling_of_an_operation_matches(key):
    plan = plan_of(Deep(), OURS.K(global_config=OURS.w(3, op_type_config={key: OURS.op(8)})))
    assert set(bits(plan).values()) == {8}
    assert plan.notes == ()


def test_operations_of_a_shared_module_match_under_each_of_its_names():
    for name in ("a", "b"):
        config = OURS.K(global_config=OURS.w(3, op_name_config={rf"{name}\.linear": OURS.op(8)}))
        plan = plan_of(Shared(), config)
        assert bits(plan) == {"a.weight": 8, "c.weight": 3}
        assert plan.notes == ()


def test_flags_come_with_the_entry_that_decides():
    late = PATSchedule(enable_fake_palettize=5)
    config = OURS.K(
        global_config=OURS.w(3, enable_fast_kmeans_mode=False),
        module_name_configs={
            "b": OURS.w(4, rounding_precision=2),
            "c": OURS.w(4, rounding_precision=6, pat_schedule=late),
        },
    )
    plan = plan_of(Deep(), config)
    assert {t.name: t.resolution for t in plan} == {
        "a.weight": None,
        "b.0.weight": 2,
        "b.1.0.weight": 2,
        "c.0.weight": 6,
    }
    assert plan["c.0.weight"].pat_schedule == late
    assert plan["a.weight"].pat_schedule is None


def test_a_tied_tensor_is_found_under_every_name():
    plan = plan_of(Tied())
    assert plan["b.weight"] is plan["a.weight"]
    assert [owner.name for owner in plan["a.weight"].owners] == ["a.weight", "b.weight"]
    with pytest.raises(KeyError):
        plan["c.weight"]


def test_seeds_depend_on_config_and_name_only():
    first = {t.name: t.seed for t in plan_of(Deep(), K(seed=1))}
    assert first == {t.name: t.seed for t in plan_of(Deep(), K(seed=1))}
    assert len(set(first.values())) == len(first)
    assert first != {t.name: t.seed for t in plan_of(Deep(), K(seed=2))}
    part = plan_of(Deep(), K(seed=1, module_name_configs={"c": M()}))
    assert part["c.0.weight"].seed == first["c.0.weight"]
