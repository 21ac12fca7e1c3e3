"""Runs: reports that palettizing has left in files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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


def runs_of(
    given: Mapping[str, Report | str | os.PathLike[str]] | Sequence[str | os.PathLike[str]],
) -> list[Run]:
    """Return runs by name; files that have no names given are called after themselves.

    Raises:
        RunFileError: a file is none.
        OSError: a file cannot be read.
    """
    if isinstance(given, Mapping):
        return [
            Run(name, run if isinstance(run, Report) else read_run(Path(run)).report)
            for name, run in given.items()
        ]
    paths = [Path(path) for path in given]
    runs = [read_run(path) for path in paths]
    return [Run(name, run.report) for name, run in zip(_apart(paths), runs, strict=True)]


def _apart(paths: Sequence[Path]) -> list[str]:
    """Return different names of files, with their folders where those of files are alike."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    texts = [path.with_suffix("").as_posix() for path in paths]
    common = os.path.commonpath(texts) if len(set(texts)) > 1 else ""
    names = [os.path.relpath(text, common) if common else text for text in texts]
    return [
        name if names.count(name) == 1 else f"{name} ({at})" for at, name in enumerate(names, 1)
    ]
