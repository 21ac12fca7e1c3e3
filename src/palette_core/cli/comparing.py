"""Work of the commands that show runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from palette_core.reporting import console as show
from palette_core.reporting.comparing import compare_runs
from palette_core.reporting.comparison_files import (
    check_comparison_file,
    show_comparison,
    write_comparison,
)
from palette_core.reporting.files import check_report_file, write_report
from palette_core.reporting.runs import Run, read_run


def report(run: Path, output: Path, *, as_json: bool) -> None:
    """Print a run, and write it as a page or a picture.

    Raises:
        RunFileError: it is none.
        OSError: it cannot be read, or the output not be written.
    """
    found = read_run(run).report
    check_report_file(output)
    write_report(found, output)
    if as_json:
        show.print_json({**found.to_dict(views=False), "report": str(output)})
        return
    show.report(found)
    show.totals({"report": str(output)})


def compare(
    paths: Sequence[Path], by: str | None, output: Path | None, *, minimize: bool, as_json: bool
) -> None:
    """Put runs beside each other.

    Raises:
        RunFileError: one is none.
        RunComparisonError: they cannot be compared so.
        OSError: one cannot be read, or the output not be written.
    """
    if output is not None:
        check_comparison_file(output)
    runs = [read_run(path) for path in paths]
    found = compare_runs(_named_apart(paths, runs), by, minimize=minimize)
    if output is not None:
        write_comparison(found, output)
    if as_json:
        show.print_json(found.to_dict())
        return
    show_comparison(found)
    if output is not None:
        show.totals({"comparison": str(output)})


def _named_apart(paths: Sequence[Path], runs: Sequence[Run]) -> list[Run]:
    """Return runs of different names: those of their files, with folders where these are alike."""
    if len({run.name for run in runs}) == len(runs):
        return list(runs)
    texts = [path.with_suffix("").as_posix() for path in paths]
    common = os.path.commonpath(texts) if len(set(texts)) > 1 else ""
    names = [os.path.relpath(text, common) if common else text for text in texts]
    return [
        Run(name if names.count(name) == 1 else f"{name} ({at})", run.report)
        for at, (name, run) in enumerate(zip(names, runs, strict=True), 1)
    ]
