"""Planning of large models with many rules, by the functions it calls, not by seconds."""

import sys
import warnings
from collections.abc import Callable

import pytest
import torch

from palette_core import KMeansPalettizerConfig, ModuleKMeansPalettizerConfig
from palette_core.errors import ConfigError
from palette_core.model.graph import ModelGraph, ModuleRecord, Owner, TensorRecord, Use
from palette_core.planning import make_plan
from palette_core.plugins.catalog import get_catalog

LINEAR = "torch.nn.modules.linear.Linear"
PER_RULE = ("layers.{0}", r"layers\.{0}", "layers.{0}|other.{0}", "layer.{0}")


def layers(count: int) -> ModelGraph:
    names = [f"layers.{number}" for number in range(count)]
    return ModelGraph(
        tuple(ModuleRecord((name,), LINEAR) for name in names),
        tuple(
            TensorRecord(
                (Owner(name, "weight"),),
                (16, 16),
                torch.float32,
                "parameter",
                (Use(name, "linear", f"{name}.linear"),),
            )
            for name in names
        ),
    )


def calls_of(action: Callable[[], object]) -> int:
    """Return how many functions ``action`` calls, those in C included."""
    counted = 0

    def count(frame, event, argument):
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return counted


def work(count: int, rule: str | None) -> int:
    graph = layers(count)
    entry = ModuleKMeansPalettizerConfig()
    rules = {rule.format(number): entry for number in range(count)} if rule else {}
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(), module_name_configs=rules
    )
    return calls_of(lambda: make_plan(graph, config, get_catalog()))


@pytest.mark.parametrize("rule", [None, "layers.{0}", r"layers\.{0}"])
def test_work_grows_with_the_layers_and_no_faster(rule):
    work(10, rule)
    small, large = work(300, rule), work(1200, rule)
    assert large < 4.4 * small


def test_a_rule_per_layer_costs_no_more_than_planning_the_layer_does():
    # 1.9 times the seconds for 4,000 layers: benchmarks/planning.py
    work(10, None)
    assert work(500, "layers.{0}") < 2.2 * work(500, None)


def test_rules_by_operation_are_looked_up_too():
    def action(count: int) -> int:
        entry = ModuleKMeansPalettizerConfig(
            op_name_config={f"layers.{number}.linear": None for number in range(count)}
        )
        graph, config = layers(count), KMeansPalettizerConfig(global_config=entry)
        return calls_of(lambda: make_plan(graph, config, get_catalog()))

    action(10)
    assert action(1200) < 4.4 * action(300)


@pytest.mark.slow
def test_rules_that_match_nothing_are_noted_in_linear_work():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work(10, "layer.{0}")
        # The first few are compared with all names, to tell the nearest.
        hinted = work(600, "layer.{0}") - work(300, "layer.{0}")
        assert work(1200, "layer.{0}") - work(900, "layer.{0}") < 1.3 * hinted


def test_an_expression_without_end_stops_the_plan():
    graph = ModelGraph((ModuleRecord(("a" * 35,), LINEAR),), ())
    config = KMeansPalettizerConfig(module_name_configs={"(a|aa)+[.,]": None})
    with pytest.raises(ConfigError, match="takes too long"):
        make_plan(graph, config, get_catalog())
