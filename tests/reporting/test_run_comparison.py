"""Runs beside each other: the front by brute force, names that bite, what differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palette_core.engine.results import Report, TensorReport
from palette_core.engine.run_facts import RunFacts
from palette_core.planning import SkippedTensor
from palette_core.reporting.html.comparisons import comparison_page
from palette_core.reporting.run_comparison import (
    RunComparisonError,
    compare_runs,
    pareto_front,
)
from palette_core.reporting.runs import RunFileError

ROW = TensorReport(
    "a.weight", (8, 8), 4, "per tensor", "kmeans1d", 256, 64, 20.0, 0.1, "global_config",
    squared_error=1.0, lut_dtype="float32",
)  # fmt: skip


def run(bits: float, error: float | None, **scores: float) -> Report:
    facts = RunFacts(bits_per_weight=bits, output_error=error, scores=scores)
    return Report((ROW,), (), run=facts)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_the_front_is_that_of_the_definition(points: list[tuple[int, int]]) -> None:
    for mine, best in zip(points, pareto_front(points), strict=True):
        worse = [p for p in points if p[0] <= mine[0] and p[1] <= mine[1]]
        assert best == all(p == mine for p in worse)


def test_runs_are_judged_by_what_all_have() -> None:
    runs = {"b": run(4, 0.1, top1=0.9, loss=1.0), "a": run(2, 0.2, top1=0.8)}
    found = compare_runs(runs)
    assert ([row.name for row in found.rows], found.judge) == (["a", "b"], "top1")
    assert compare_runs({"a": run(2, 0.2), "b": run(3, None)}).judge == "weight error"
    assert compare_runs({"a": run(2, 0.2), "b": run(3, 0.1)}).minimized
    worse = {"a": run(2, 0.2, loss=1.0), "b": run(3, 0.1, loss=2.0)}
    assert [row.on_front for row in compare_runs(worse, minimize=True).rows] == [True, False]
    assert [row.on_front for row in compare_runs(worse).rows] == [True, True]
    with pytest.raises(RunComparisonError, match="no 'loss' is known of a"):
        compare_runs(runs, "loss")


def test_weights_that_differ_are_told() -> None:
    more = replace(ROW, name="b.weight")
    alike = Report((ROW, more), ())
    bits = Report((replace(ROW, n_bits=3), more), ())
    skipped = SkippedTensor("b.weight", (8, 8), "too small", "rule", 256)
    dense = Report((ROW,), (skipped,))
    found = compare_runs({"x": alike, "y": bits, "z": dense})
    differences = {item.name: dict(zip([r.name for r in found.rows], item.specs, strict=True))
                   for item in found.differences}  # fmt: skip
    assert differences["a.weight"]["y"] == "3 bits, per tensor, kmeans1d, float32"
    assert differences["b.weight"]["z"] == "dense"
    assert compare_runs({"x": alike, "w": alike}).differences == ()


def test_files_of_runs_are_called_after_themselves_and_mix_with_reports(tmp_path: Path) -> None:
    paths = []
    for folder, bits in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "run.json")
        paths[-1].write_text(json.dumps(run(bits, 0.1).to_dict()))
    assert [row.name for row in compare_runs(paths).rows] == ["a/run", "b/run"]
    found = compare_runs({"here": run(4, 0.1), "there": str(paths[0])})
    assert [row.name for row in found.rows] == ["there", "here"]
    assert "srcdoc" in found._repr_html_()
    assert "there" in found.to_html()
    with pytest.raises(RunComparisonError, match="two runs or more are compared, got 1"):
        compare_runs(paths[:1])
    paths[0].write_text("{}")
    with pytest.raises(RunFileError, match=r"run\.json is no run"):
        compare_runs(paths)


def test_frames_of_comparisons_have_a_row_for_each_run() -> None:
    pytest.importorskip("pandas")
    frame = compare_runs({"b": run(4, 0.1, top1=0.9), "a": run(2, 0.2, top1=0.8)}).to_pandas()
    assert list(frame["name"]) == ["a", "b"]
    assert list(frame["top1"]) == [0.8, 0.9]


@pytest.mark.parametrize("values", [(0.0, 0.0), (1e-12, 1.0), (0.5, 0.5), (1e300, 1e-300)])
def test_pages_are_drawn_of_any_figures_and_names(values: tuple[float, float]) -> None:
    evil = "<script>alert(1)</script>"
    runs = {evil: run(2, values[0]), "b\x1b[31m": run(2, values[1])}
    page = comparison_page(compare_runs(runs), evil)
    assert page.count("<script") == 1
    assert "nan" not in page
    assert "\x1b" not in page
    assert page.count("<circle") == 2
