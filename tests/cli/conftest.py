"""What the tests of the command line share."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from palette_core.cli import main
from palette_core.reporting import console

Command = Callable[..., tuple[int | str, str, str]]


@pytest.fixture
def talk() -> Iterator[None]:
    """Begin, and end, as a process does that ``-v`` and ``-q`` have said nothing to."""

    def begin() -> None:
        logging.getLogger("palette_core").setLevel(logging.NOTSET)
        console.console.quiet = False

    logger = logging.getLogger("palette_core")
    handlers = list(logger.handlers)
    begin()
    yield
    begin()
    logger.handlers[:] = handlers


@pytest.fixture
def command(
    talk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run ``palette`` in an empty folder; returns code, out and err."""
    del talk
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    showwarning = warnings.showwarning

    def run(*arguments: object) -> tuple[int | str, str, str]:
        monkeypatch.setattr(sys, "argv", ["palette", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", showwarning)
        with pytest.raises(SystemExit) as stopped:
            main()
        sys.modules.pop("fac", None)  # the models of most tests, which differ
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run
