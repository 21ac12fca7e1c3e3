"""How planning grows with layers and rules, as ratios to the same layers without rules.

    python benchmarks/planning.py [--layers 1000 2000 4000] [--json FILE]

A made-up graph of equal layers, so that nothing but planning is measured; then real modules, traced
and planned. Each figure is the least of three processor times; every rule has a config of its own,
as a file without anchors gives it. Real modules are planned with Python's garbage collector off,
too: it looks through all objects of the process, those of imported libraries among them, each time
there are a quarter more, which falls on some numbers of modules and not on others.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
)
from palette_core.model.graph import ModelGraph, ModuleRecord, Owner, TensorRecord, Use
from palette_core.planning import make_plan
from palette_core.plugins.catalog import get_catalog

RULES = {
    "no rules": "",
    "a name per layer": "layers.{0}",
    "an escaped name per layer": r"layers\.{0}",
    "an expression per layer": r"layers\.{0}(\..*)?",
    "a misspelt name per layer": "layer.{0}",
}
TARGET = 2.0  # times the seconds without rules, for a name per layer


def graph_of(layers: int) -> ModelGraph:
    names = [f"layers.{number}" for number in range(layers)]
    tensors = (
        TensorRecord(
            (Owner(name, "weight"),),
            (16, 16),
            torch.float32,
            "parameter",
            (Use(name, "linear", f"{name}.linear"),),
        )
        for name in names
    )
    linear = "torch.nn.modules.linear.Linear"
    return ModelGraph(tuple(ModuleRecord((name,), linear) for name in names), tuple(tensors))


def seconds(layers: int, rule: str) -> float:
    graph, catalog = graph_of(layers), get_catalog()
    rules = (
        {rule.format(number): ModuleKMeansPalettizerConfig() for number in range(layers)}
        if rule
        else {}
    )
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(), module_name_configs=rules
    )
    return least(lambda: make_plan(graph, config, catalog))


def traced_seconds(modules: int) -> float:
    """Return the seconds of planning a model of so many modules, tracing included."""
    palettizer = KMeansPalettizer(nn.Sequential(*(nn.Linear(16, 16) for _ in range(modules))))
    return least(lambda: palettizer.make_plan((torch.ones(1, 16),)))


def least(function: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        gc.collect()
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds(100, "layers.{0}")  # what is done once per process
    figures = {}
    for name, rule in RULES.items():
        for layers in arguments.layers:
            taken = seconds(layers, rule)
            figures[f"{name}, {layers}"] = taken
            ratio = taken / figures[f"no rules, {layers}"]
            print(f"{name:28} {layers:6} layers {taken:8.3f} s   {ratio:6.2f}x")
    for layers in arguments.layers:
        ratio = figures[f"a name per layer, {layers}"] / figures[f"no rules, {layers}"]
        verdict = "kept" if ratio < TARGET else "missed"
        print(f"{layers} layers: {ratio:.2f}x, target {TARGET}x: {verdict}")
    for layers in arguments.layers:
        figures[f"traced, {layers}"] = taken = traced_seconds(layers)
        each = taken / layers * 1e6
        print(f"{layers} modules, traced and planned: {taken:.3f} s, {each:.0f} µs for each")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
