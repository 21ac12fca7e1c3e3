"""Runs beside each other: bits against errors and scores, the Pareto front, layers that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from os import PathLike
from typing import Any

from palette_core.engine.results import Report, TensorReport
from palette_core.errors import PaletteError, did_you_mean
from palette_core.reporting.runs import Run, runs_of
from palette_core.storage.forms.lookup import DEFAULT_FORM

OUTPUT_ERROR = "output error"
WEIGHT_ERROR = "weight error"


class RunComparisonError(PaletteError, ValueError):
    """Runs cannot be compared as asked."""


@dataclass(frozen=True)
class RunRow:
    """Figures of one run.

    Attributes:
        name: of the run.
        bits_per_weight: over the whole model; where that was not recorded, over its palettized
            weights.
        bytes: of all parameters and buffers; None where that was not recorded.
        output_error: relative squared error of the model's outputs; None where not measured.
        weight_error: relative squared error of the palettized weights.
        scores: of the user's evaluation.
        on_front: whether no other run has as few bits and is as good, and better in one of them.
    """

    name: str
    bits_per_weight: float
    bytes: int | None
    output_error: float | None
    weight_error: float
    scores: dict[str, float]
    on_front: bool = False

    def value(self, judge: str) -> float | None:
        """Return what the run is judged by."""
        if judge == OUTPUT_ERROR:
            return self.output_error
        return self.weight_error if judge == WEIGHT_ERROR else self.scores.get(judge)


@dataclass(frozen=True)
class Difference:
    """Weight that not all runs treat alike.

    Attributes:
        name: of the weight.
        specs: by run: bits, granularity, algorithm, tables, in words; None where the run has no
            such weight.
        errors: by run: of the layer's outputs where all runs have measured it, else of the weight.
    """

    name: str
    specs: tuple[str | None, ...]
    errors: tuple[float | None, ...]


@dataclass(frozen=True)
class RunComparison:
    """Runs beside each other.

    Attributes:
        rows: in ascending order of bits.
        judge: what the front is of: a score, ``"output error"`` or ``"weight error"``.
        minimized: whether less of it is better.
        differences: weights that are not treated alike.
    """

    rows: tuple[RunRow, ...]
    judge: str
    minimized: bool
    differences: tuple[Difference, ...]

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores that any run has."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.scores))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def to_html(self, title: str = "palette_core") -> str:
        """Return a page that shows all of this, with everything that it needs in it."""
        page: str = _drawn_by("html.comparisons").comparison_page(self, title)
        return page

    def _repr_html_(self) -> str:
        """Return what notebooks show: the page, in a frame of its own."""
        frame: str = _drawn_by("html.pages").framed(self.to_html())
        return frame

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``, one row for each run, scores beside the other figures.

        Raises:
            MissingFramesError: pandas is not installed.
        """
        return _drawn_by("frames").framed_rows(_drawn_by("comparison_files").rows_of(self))


def _drawn_by(module: str) -> Any:
    """Import what draws, which knows comparisons, when somebody asks for a drawing."""
    return import_module(f"palette_core.reporting.{module}")


def compare_runs(
    runs: Mapping[str, Report | str | PathLike[str]] | Sequence[str | PathLike[str]],
    judge: str | None = None,
    *,
    minimize: bool = False,
) -> RunComparison:
    """Put runs beside each other.

    Args:
        runs: two or more: reports, or files that ``palette palettize --report run.json`` has
            written, by name; a sequence of files has the names of these.
        judge: a score, ``"output error"`` or ``"weight error"``, by which runs are judged; None
            is the first score that all have, else the first error that all have.
        minimize: of a score, less is better; of errors it always is.

    Raises:
        RunComparisonError: too few runs, or one has no such figure.
        RunFileError: a file is no run.
        OSError: a file cannot be read.
    """
    named = runs_of(runs)
    if len(named) < 2:
        raise RunComparisonError(f"two runs or more are compared, got {len(named)}")
    ordered = sorted(((_row(run), run) for run in named), key=lambda pair: pair[0].bits_per_weight)
    rows = [row for row, _ in ordered]
    known = [*dict.fromkeys(name for row in rows for name in row.scores)]
    known += [OUTPUT_ERROR, WEIGHT_ERROR]
    shared = [name for name in known if all(row.value(name) is not None for row in rows)]
    if judge is None:
        judge = shared[0]
    elif judge not in shared:
        lacking = [row.name for row in rows if row.value(judge) is None]
        hint = did_you_mean(judge, shared) or f"; all have {', '.join(shared)}"
        raise RunComparisonError(f"no {judge!r} is known of {', '.join(lacking)}{hint}")
    minimized = minimize or judge in (OUTPUT_ERROR, WEIGHT_ERROR)
    sign = 1 if minimized else -1
    points = [(row.bits_per_weight, sign * (row.value(judge) or 0.0)) for row in rows]
    told = tuple(
        replace(row, on_front=best) for row, best in zip(rows, pareto_front(points), strict=True)
    )
    return RunComparison(told, judge, minimized, _differences([run for _, run in ordered]))


def _row(run: Run) -> RunRow:
    report = run.report
    bits = report.run.bits_per_weight
    return RunRow(
        run.name,
        report.bits_per_palettized_weight if bits is None else bits,
        report.run.bytes,
        report.run.output_error,
        _weight_error(report),
        dict(report.run.scores),
    )


def _weight_error(report: Report) -> float:
    error = norm = 0.0
    for row in report.tensors:
        if row.squared_error:
            error += row.squared_error
            norm += row.squared_error * 10 ** (row.snr_db / 10)
    return error / norm if norm else 0.0


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return whether no other point is as low in both and lower in one; O(n²), of runs a few."""
    return [
        not any(x <= mine[0] and y <= mine[1] and (x, y) != mine for x, y in points)
        for mine in points
    ]


def _differences(runs: Sequence[Run]) -> tuple[Difference, ...]:
    tables: list[dict[str, TensorReport]] = []
    dense: list[set[str]] = []
    for run in runs:
        tables.append({row.name: row for row in run.report.tensors})
        dense.append({item.name for item in run.report.left})
    found = []
    for name in dict.fromkeys(name for table in tables for name in table):
        specs = tuple(
            _spec(table[name]) if name in table else "dense" if name in left else None
            for table, left in zip(tables, dense, strict=True)
        )
        if len(set(specs)) > 1:
            rows = [table.get(name) for table in tables]
            found.append(Difference(name, specs, _errors(rows)))
    return tuple(found)


def _spec(row: TensorReport) -> str:
    pair = f" ×{row.cluster_dim}" if row.cluster_dim > 1 else ""
    form = "" if row.stored_form == DEFAULT_FORM else f", {row.stored_form}"
    return f"{row.n_bits}{pair} bits, {row.granularity}, {row.algorithm}, {row.lut_dtype}{form}"


def _errors(rows: Sequence[TensorReport | None]) -> tuple[float | None, ...]:
    measured = all(row is None or row.output_error is not None for row in rows)
    return tuple(
        None if row is None else row.output_error if measured else 10 ** (-row.snr_db / 10)
        for row in rows
    )
