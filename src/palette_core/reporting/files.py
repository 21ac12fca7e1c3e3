"""Reports in files: the suffix picks who writes them.

One more format is a module beside this one, and one row in `FORMATS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from palette_core._common.files import atomic_path
from palette_core.engine.results import Report
from palette_core.errors import PaletteError
from palette_core.reporting.html.pages import check_page, write_report_page
from palette_core.reporting.pictures import check_picture, plot_report


class ReportFileError(PaletteError, ValueError):
    """A report cannot be written where it was to be."""


@dataclass(frozen=True)
class ReportFormat:
    """One way to write a report into a file.

    Attributes:
        suffixes: which names it is for; none is all that are left.
        check: refuses, before any work, a name under which it could not write.
        write: writes.
    """

    suffixes: tuple[str, ...]
    check: Callable[[Path], object]
    write: Callable[[Report, Path], object]


def check_report_file(path: Path) -> None:
    """Refuse, before any work, a file that a report could not be written into.

    Raises:
        PaletteError: of the format: saying why.
    """
    _format_of(path).check(path)


def write_report(report: Report, path: Path) -> None:
    """Write a report in the format that the suffix of ``path`` stands for.

    Raises:
        PaletteError: of the format: it cannot.
        OSError: the file cannot be written.
    """
    _format_of(path).write(report, path)


def write_reports(report: Report, paths: Iterable[Path]) -> None:
    """Write a report into several files.

    Raises:
        PaletteError, OSError: see `write_report`.
    """
    for path in paths:
        write_report(report, path)


def _format_of(path: Path) -> ReportFormat:
    return next(form for form in FORMATS if path.suffix in form.suffixes or not form.suffixes)


def _check_json(path: Path) -> None:
    if path.is_dir():
        raise ReportFileError(f"cannot write a report into {path}: it is a folder")


def _write_json(report: Report, path: Path) -> None:
    _check_json(path)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


FORMATS = (
    ReportFormat((".json",), _check_json, _write_json),
    ReportFormat((".html", ".htm"), check_page, write_report_page),
    ReportFormat((), check_picture, plot_report),
)
