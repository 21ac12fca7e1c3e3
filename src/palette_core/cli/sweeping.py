"""``palette sweep``: a run for each point of a grid, in a folder where a killed one goes on."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from palette_core._common.bounded_json import read_json
from palette_core._common.files import atomic_path
from palette_core._common.locks import alone_in
from palette_core._common.progress import progress_bar
from palette_core.allocation.cache import runs_digest
from palette_core.cli.factories import Loaded, load_batches, load_callable, load_factory
from palette_core.cli.sweep_files import Point, Sweep, SweepError
from palette_core.cli.work import scores_of
from palette_core.config import KMeansPalettizerConfig
from palette_core.engine.results import Report
from palette_core.errors import PaletteError
from palette_core.palettizer import KMeansPalettizer
from palette_core.planning import check_names
from palette_core.plugins.catalog import get_catalog
from palette_core.reporting import console as show
from palette_core.reporting.comparison_files import (
    rows_of,
    show_comparison,
    write_comparison,
    write_csv,
)
from palette_core.reporting.run_comparison import RunComparison, compare_runs
from palette_core.reporting.runs import Run, RunFileError, read_run
from palette_core.version import __version__

_MADE_OF = "made_of"  # in the file of a run: what tells it from runs of anything else
_TABLE, _PAGE = "sweep.csv", "sweep.html"


def sweep(
    file: Path,
    evaluate: str,
    folder: Path,
    *,
    by: str | None,
    minimize: bool,
    num_workers: int,
    as_json: bool,
) -> None:
    """Palettize a model at every point of a grid, evaluate it, and compare.

    Runs that the folder holds already, of the same model, configuration and evaluation, are not
    made again; the table is written anew after each.

    Raises:
        SweepError: the file is no sweep, or no point of it could be done.
        FactoryError: the model, the batches or the evaluation fail.
        OSError: a file cannot be written.
    """
    asked = Sweep.read(file)
    call = load_callable(evaluate)
    points = asked.points()
    loaded = load_factory(asked.model, asked.inputs)
    batches = None if asked.calibration is None else load_batches(asked.calibration)
    digest = _digest(loaded, batches, call)
    runs: dict[str, Run] = {}
    refused: dict[str, str] = {}
    with alone_in(folder), progress_bar("Sweeping", len(points)) as advance:
        for point in points:
            try:
                report = _done(point, loaded, batches, call, folder, digest, num_workers)
                runs[point.name] = Run(point.name, report)
            except _RefusedError as error:
                refused[point.name] = str(error)
            write_csv(_table(points, runs, refused, None), folder / _TABLE)
            advance(point.name, 1)
        found = None
        if len(runs) > 1:
            found = compare_runs(
                {name: run.report for name, run in runs.items()}, by, minimize=minimize
            )
            write_csv(_table(points, runs, refused, found), folder / _TABLE)
            write_comparison(found, folder / _PAGE)
    if not runs:
        first, reason = next(iter(refused.items()))
        raise SweepError(f"no point of {file} could be done; {first}: {reason}")
    _tell(found, runs, refused, folder, as_json=as_json)


class _RefusedError(Exception):
    """A point of the grid cannot be done."""


def _done(
    point: Point,
    loaded: Loaded,
    batches: Sequence[Any] | None,
    evaluate: Callable[[Any], Any],
    folder: Path,
    digest: str,
    num_workers: int,
) -> Report:
    """Return the run of a point, from its file where that is of the same.

    Raises:
        _RefusedError: the point asks for what cannot be.
    """
    path = folder / f"{point.name}.json"
    text = json.dumps([digest, point.config], sort_keys=True)
    made_of = hashlib.sha256(text.encode()).hexdigest()
    known = _known(path, made_of)
    if known is not None:
        return known
    try:
        config = KMeansPalettizerConfig.from_dict(point.config)
        check_names(config, get_catalog())
        model = _copied(loaded.model)
        palettizer = KMeansPalettizer(model, config)
        if batches is not None:
            palettizer.calibrate(batches, sequential=True)
        palettizer.prepare(loaded.example_inputs, num_workers=num_workers)
    except PaletteError as error:
        raise _RefusedError(" ".join(str(error).split())) from error
    report = palettizer.measure(loaded.example_inputs)
    if not report.tensors:
        raise _RefusedError("nothing is palettized")
    report = replace(report, run=replace(report.run, scores=scores_of(evaluate, model)))
    with atomic_path(path) as fresh:
        plain = {_MADE_OF: made_of, **report.to_dict()}
        fresh.write_text(json.dumps(plain) + "\n", encoding="utf-8")
    return report


def _known(path: Path, made_of: str) -> Report | None:
    """Return the run that a file holds, if it is of the same."""
    try:
        found = read_json(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get(_MADE_OF) == made_of:
            return read_run(path).report
    except (OSError, ValueError, RunFileError):  # none, or damaged: made anew
        pass
    return None


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise SweepError(
            f"a sweep palettizes copies of the model, and {type(model).__name__} cannot be copied: "
            f"{type(error).__name__}: {error}"
        ) from error


def _digest(loaded: Loaded, batches: Sequence[Any] | None, evaluate: Callable[..., Any]) -> str:
    """Return what tells results of this model, these batches and this evaluation from others."""
    try:
        source = inspect.getsource(evaluate)
    except (OSError, TypeError):
        source = repr(type(evaluate))
    inputs = [loaded.example_inputs, [] if batches is None else list(batches)]
    return f"{__version__} {runs_digest(loaded.model, inputs)} {source}"


def _table(
    points: Sequence[Point],
    runs: dict[str, Run],
    refused: dict[str, str],
    found: RunComparison | None,
) -> list[dict[str, Any]]:
    """Return a record for each point that is done or refused, with the fields of the grid."""
    if found is None:
        figures = {
            name: {
                "bits_per_weight": run.report.run.bits_per_weight,
                "bytes": run.report.run.bytes,
                "output_error": run.report.run.output_error,
                **run.report.run.scores,
            }
            for name, run in runs.items()
        }
    else:
        figures = {row["name"]: row for row in rows_of(found)}
    columns = dict.fromkeys(key for row in figures.values() for key in row if key != "name")
    return [
        {
            "run": point.name,
            **{name: _cell(value) for name, value in point.fields.items()},
            **{key: figures.get(point.name, {}).get(key) for key in columns},
            **_of_run(runs.get(point.name)),
            "refused": refused.get(point.name),
        }
        for point in points
        if point.name in runs or point.name in refused
    ]


def _of_run(run: Run | None) -> dict[str, Any]:
    if run is None:
        return {"asked_but_dense": None, "seconds": None}
    seconds = sum(run.report.run.seconds.values())
    return {"asked_but_dense": len(run.report.skipped), "seconds": round(seconds, 3)}


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (dict, list)) else value


def _tell(
    found: RunComparison | None,
    runs: dict[str, Run],
    refused: dict[str, str],
    folder: Path,
    *,
    as_json: bool,
) -> None:
    files = {"table": str(folder / _TABLE)}
    if found is not None:
        files["comparison"] = str(folder / _PAGE)
    if as_json:
        told = None if found is None else found.to_dict()
        show.print_json({"comparison": told, "runs": list(runs), "refused": refused, **files})
        return
    if found is not None:
        show_comparison(found)
    if refused:
        shown = show.table("Points that could not be done", "run", "why")
        for name, reason in refused.items():
            shown.add_row(name, reason)
        show.console.print(shown)
    show.totals(files)
