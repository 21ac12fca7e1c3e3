"""Checks of commands, run in this process with their output caught."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from palette_core.errors import PaletteError
from palette_core.plugins.kinds import COMMAND
from palette_core.testing._kit import Subject, check, demand

_KIND = COMMAND
_UNKNOWN = "--no-command-has-this-option"


def _run(subject: Subject, arguments: Sequence[str]) -> tuple[object, str]:
    """Return how a command ends, and what it prints."""
    printed = io.StringIO()
    command: Any = subject.entry.factory(subject.entry.options())
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code: object = command.run(arguments)
        except SystemExit as error:
            code = error.code
        except PaletteError as error:
            return 2, str(error)
    return 0 if code is None else code, printed.getvalue()


@check(_KIND)
def answers_help(subject: Subject) -> None:
    """``--help`` prints what the command does, and ends with exit code 0."""
    code, printed = _run(subject, ["--help"])
    demand(subject, code == 0, f"--help ends with {code!r}, expected 0")
    demand(subject, printed.strip(), "--help prints nothing")


@check(_KIND)
def names_itself(subject: Subject) -> None:
    """``--help`` shows how the command is called: ``palette`` and its name."""
    called = f"palette {subject.entry.name}"
    printed = _run(subject, ["--help"])[1]
    demand(subject, called in printed, f"--help does not show {called!r}: {printed!r}")


@check(_KIND)
def repeatable(subject: Subject) -> None:
    """The same arguments are answered alike a second time."""
    for arguments in (["--help"], [_UNKNOWN]):
        first, second = (_run(subject, arguments) for _ in range(2))
        demand(subject, first == second, f"{arguments[0]} gives {second!r} after {first!r}")


@check(_KIND)
def refuses_unknown_options(subject: Subject) -> None:
    """An unknown option ends with a message, and an exit code that is not 0."""
    code, printed = _run(subject, [_UNKNOWN])
    demand(subject, code != 0, f"{_UNKNOWN} ends with {code!r}, expected an error")
    demand(subject, printed.strip(), f"{_UNKNOWN} ends with {code!r} and says nothing")
