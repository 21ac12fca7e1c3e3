"""Commands at work."""

from __future__ import annotations

from collections.abc import Sequence

from palette_core.plugins.commands import Command, CommandEntry
from palette_core.plugins.guards import shown
from palette_core.plugins.making import Made, make
from palette_core.plugins.registries import Registered


def run_command(item: Registered[CommandEntry], arguments: Sequence[str]) -> int:
    """Run a command, and return its exit code.

    Raises:
        CommandError: it fails, or returns what is no exit code.
        SystemExit: it ends so.
        OSError: a file cannot be read or written.
    """
    made: Made[Command] = make(item, {})
    code: object = made.ask(
        lambda command: command.run(list(arguments)), passes=(SystemExit, OSError)
    )
    if code is None or (isinstance(code, int) and 0 <= code < 256):
        return int(code or 0)
    raise made.wrong(f"returned {shown(code)}, expected an exit code from 0 to 255, or None")
