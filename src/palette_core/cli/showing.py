"""Work of the commands that show runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palette_core.reporting import console as show
from palette_core.reporting.comparison_files import (
    check_comparison_file,
    show_comparison,
    write_comparison,
)
from palette_core.reporting.files import check_report_file, write_report
from palette_core.reporting.run_comparison import compare_runs
from palette_core.reporting.runs import read_run


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
    found = compare_runs(paths, by, minimize=minimize)
    if output is not None:
        write_comparison(found, output)
    if as_json:
        show.print_json(found.to_dict())
        return
    show_comparison(found)
    if output is not None:
        show.totals({"comparison": str(output)})
