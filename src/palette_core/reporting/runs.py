"""Runs: reports that palettizing has left in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palette_core._common.bounded_json import MAX_CHARACTERS, read_json
from palette_core.engine.results import Report
from palette_core.errors import PaletteError


class RunFileError(PaletteError, ValueError):
    """A file is no run."""


@dataclass(frozen=True)
class Run:
    """Report of one run, and what it is called in tables."""

    name: str
    report: Report


def read_run(path: Path) -> Run:
    """Read what ``palette palettize --report run.json`` has written.

    Raises:
        RunFileError: it is something else.
        OSError: it cannot be read.
    """
    how = "palette palettize … --report run.json writes one"
    if path.is_dir() or path.suffix == ".safetensors":
        raise RunFileError(f"{path} is no run but what a run has written; {how}")
    if path.stat().st_size > MAX_CHARACTERS:
        raise RunFileError(f"{path} is no run: {path.stat().st_size:,} bytes; {how}")
    try:
        return Run(path.stem, Report.from_dict(read_json(path.read_bytes())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RunFileError(f"{path} is no run ({what}); {how}") from None
