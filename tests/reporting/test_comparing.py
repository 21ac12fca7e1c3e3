"""Runs beside each other: the front by brute force, names that bite, what differs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palette_core.engine.results import Report, TensorReport
from palette_core.engine.run_facts import RunFacts
from palette_core.planning import SkippedTensor
from palette_core.reporting.comparing import (
    RunComparisonError,
    compare_runs,
    pareto_front,
)
from palette_core.reporting.html.comparisons import comparison_page
from palette_core.reporting.runs import Run

ROW = TensorReport(
    "a.weight", (8, 8), 4, "per tensor", "kmeans1d", 256, 64, 20.0, 0.1, "global_config",
    squared_error=1.0, lut_dtype="float32",
)  # fmt: skip


def run(name: str, bits: float, error: float | None, **scores: float) -> Run:
    facts = RunFacts(bits_per_weight=bits, output_error=error, scores=scores)
    return Run(name, Report((ROW,), (), run=facts))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_the_front_is_that_of_the_definition(points: list[tuple[int, int]]) -> None:
    for mine, best in zip(points, pareto_front(points), strict=True):
        worse = [p for p in points if p[0] <= mine[0] and p[1] <= mine[1]]
        assert best == all(p == mine for p in worse)


def test_runs_are_judged_by_what_all_have() -> None:
    runs = [run("b", 4, 0.1, top1=0.9, loss=1.0), run("a", 2, 0.2, top1=0.8)]
    found = compare_runs(runs)
    assert ([row.name for row in found.rows], found.judge) == (["a", "b"], "top1")
    assert compare_runs([run("a", 2, 0.2), run("b", 3, None)]).judge == "weight error"
    assert compare_runs([run("a", 2, 0.2), run("b", 3, 0.1)]).minimized
    worse = [run("a", 2, 0.2, loss=1.0), run("b", 3, 0.1, loss=2.0)]
    assert [row.on_front for row in compare_runs(worse, minimize=True).rows] == [True, False]
    assert [row.on_front for row in compare_runs(worse).rows] == [True, True]
    with pytest.raises(RunComparisonError, match="no 'loss' is known of a"):
        compare_runs(runs, "loss")


def test_weights_that_differ_are_told() -> None:
    more = replace(ROW, name="b.weight")
    alike = Run("x", Report((ROW, more), ()))
    bits = Run("y", Report((replace(ROW, n_bits=3), more), ()))
    skipped = SkippedTensor("b.weight", (8, 8), "too small", "rule", 256)
    dense = Run("z", Report((ROW,), (skipped,)))
    found = compare_runs([alike, bits, dense])
    differences = {item.name: dict(zip([r.name for r in found.rows], item.specs, strict=True))
                   for item in found.differences}  # fmt: skip
    assert differences["a.weight"]["y"] == "3 bits, per tensor, kmeans1d, float32"
    assert differences["b.weight"]["z"] == "dense"
    assert compare_runs([alike, replace(alike, name="w")]).differences == ()


@pytest.mark.parametrize("values", [(0.0, 0.0), (1e-12, 1.0), (0.5, 0.5), (1e300, 1e-300)])
def test_pages_are_drawn_of_any_figures_and_names(values: tuple[float, float]) -> None:
    evil = "<script>alert(1)</script>"
    runs = [run(evil, 2, values[0]), run("b\x1b[31m", 2, values[1])]
    page = comparison_page(compare_runs(runs), evil)
    assert page.count("<script") == 1
    assert "nan" not in page
    assert "\x1b" not in page
    assert page.count("<circle") == 2
