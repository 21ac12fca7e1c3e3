"""Rules that match nothing, or change nothing, are said, with the nearest that would."""

from __future__ import annotations

import re

import pytest
from plan_helpers import OURS, bits, plan_of
from plan_models import Deep, OptIn, Shared, Tied
from torch import nn

from palette_core.planning import Plan

OFF = OURS.M(op_state_spec=None)


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (
            OURS.K(global_config=OURS.w(3), module_name_configs={"c.O": OURS.w(2)}),
            r"module_name_configs\['c\.O'\] matches no module of the model; did you mean 'c\.0'\?",
        ),
        (
            OURS.K(global_config=OURS.w(3), module_type_configs={nn.Conv2d: OURS.w(2)}),
            r"module_type_configs\['torch\.nn\.modules\.conv\.Conv2d'\] matches no module",
        ),
        (
            OURS.K(global_config=OURS.w(3), module_name_configs={"dropped": None}),
            r"module_name_configs\['dropped'\] matches no module of the model$",
        ),
        (
            OURS.K(global_config=OURS.w(3, op_type_config={"conv2d": OURS.op(2)})),
            r"global_config\.op_type_config\['conv2d'\] matches no operation that consumes",
        ),
        (
            OURS.K(global_config=OURS.w(3, op_name_config={r"b\.0\.linaer": OURS.op(2)})),
            r"op_name_config\['b\\\\\.0\\\\\.linaer'\] matches no operation.*mean 'b\.0\.linear'\?",
        ),
        (
            OURS.K(global_config=OURS.M(op_state_spec={"wieght": OURS.S(), "bias": OURS.S()})),
            r"global_config\.op_state_spec\['wieght'\] names no tensor.*did you mean 'weight'\?",
        ),
        (
            OURS.K(
                global_config=OURS.w(3),
                module_name_configs={"a": OURS.state(weights=2)},
            ),
            r"\['a'\]\.module_state_spec\['weights'\] names no tensor.*did you mean 'weight'\?",
        ),
        (
            OURS.K(
                global_config=OURS.w(
                    3,
                    op_type_config={"linear": OURS.O(op_state_spec={"baïs": None, "*": OURS.S()})},
                )
            ),
            r"op_type_config\['linear'\]\.op_state_spec\['baïs'\] names no tensor",
        ),
        (
            OURS.K(
                global_config=OURS.w(3),
                module_name_configs={r"b\.0": OURS.w(8), "b": OURS.w(2)},
            ),
            r"\['b\\\\\.0'\] has no effect: what it matches goes by module_name_configs\['b'\]$",
        ),
        (
            OURS.K(
                global_config=OURS.w(3),
                module_type_configs={nn.Sequential: OFF},
                module_name_configs={"b": OURS.w(2)},
            ),
            r"Sequential'\] has no effect: what it matches goes by module_name_configs\['b'\]$",
        ),
        (
            OURS.K(
                global_config=OURS.w(3),
                module_name_configs={"c": OURS.w(2), r"c\.0": OURS.w(8)},
            ),
            r"\['c'\] palettizes nothing: what it matches goes by .*\['c\\\\\.0'\]",
        ),
        (
            OURS.K(
                global_config=OURS.w(
                    3, op_name_config={r"a\.linear": OURS.op(2), r"a\..*": OURS.op(8)}
                )
            ),
            r"op_name_config\['a\\\\\.linear'\] has no effect: the operations it matches go by",
        ),
        (
            OURS.K(global_config=OURS.w(3, op_type_config={"linear": None})),
            r"global_config palettizes nothing; the tensors .* are: a\.weight, .* and 2 more$",
        ),
    ],
)
def test_note(config, note):
    plan = plan_of(Deep(), config)
    assert plan.skipped == ()
    assert len(plan.notes) == 1, plan.notes
    (message,) = plan.warnings
    assert re.search(note, message)


@pytest.mark.parametrize(
    "config",
    [
        OURS.K(),
        OURS.K.presets.w4(),
        OURS.K().without(nn.Linear, "a").set_module_name("b", OURS.w(2)).set_global(None),
        OURS.K(global_config=OURS.w(3), module_type_configs={nn.Linear: OURS.w(2)}),
        OURS.K(global_config=OURS.w(3), module_name_configs={"a": OURS.w(2), "b": None}),
        OURS.K(global_config=OURS.w(3), module_name_configs={"b": OURS.w(2), r"b\.0": OURS.w(8)}),
        OURS.K(global_config=OURS.w(3, op_type_config={"linear": OURS.op(2)})),
        OURS.K(global_config=OURS.w(3, op_name_config={r"a\.linear": None})),
        OURS.K(global_config=None),
        OURS.K().only_for(nn.Linear),
        OURS.K().only_for("a", "c"),
    ],
)
def test_rules_with_effect_are_not_noted(config):
    assert plan_of(Deep(), config).notes == ()


def test_a_global_config_for_the_rest_needs_no_rest():
    """Linears have an entry of their own; norms are left to the global config, which has none."""
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    plan = plan_of(
        model, OURS.K(global_config=OURS.w(3), module_type_configs={nn.Linear: OURS.w(2)})
    )
    assert plan.notes == ()


def test_leaving_alone_what_has_no_weights_is_fine():
    plan = plan_of(OptIn(), OURS.K().without(nn.LayerNorm, nn.BatchNorm1d, "lstm", "e"))
    assert bits(plan) == {"lin.weight": 4}
    assert plan.notes == plan.skipped == ()


def test_a_skipped_tensor_is_said_once():
    config = OURS.only(module_name_configs={"a": OURS.grouped(0, 3).global_config, "b": OURS.w(2)})
    plan = plan_of(Deep(), config)
    assert [t.name for t in plan.skipped] == ["a.weight"]
    assert plan.notes == ()


def test_a_tied_owner_that_loses_is_noted():
    plan = plan_of(Tied(), OURS.only(module_name_configs={"a": OURS.w(2), "b": OURS.w(8)}))
    (note,) = plan.notes
    assert note.startswith("module_name_configs['a'] palettizes nothing: what it matches goes by ")
    assert "module_name_configs['b']" in note


def test_an_alias_that_loses_is_noted():
    plan = plan_of(Shared(), OURS.only(module_name_configs={"a": OURS.w(2), "b": OURS.w(8)}))
    (note,) = plan.notes
    assert note == (
        "module_name_configs['a'] has no effect: what it matches goes by module_name_configs['b']"
    )


def test_a_second_call_of_a_module_is_no_second_operation():
    config = OURS.K(global_config=OURS.w(3, op_name_config={r"a\.linear_1": OURS.op(8)}))
    (note,) = plan_of(Shared(), config).notes
    assert "matches no operation" in note
    assert "'a.linear'" in note or "'b.linear'" in note


def test_a_plan_of_nothing_is_warned_about():
    plan = plan_of(Deep(), OURS.K(global_config=None))
    (message,) = plan.warnings
    assert message.startswith("nothing is palettized: no rule of the config")


def test_thousands_of_notes_are_told_in_some_fifty_warnings():
    sentences = tuple(f"rule {number} matches no module" for number in range(4000))
    told = Plan((), notes=sentences).warnings
    assert told[:50] == sentences[:50]
    assert told[50].startswith("3,950 more rules have no effect")
