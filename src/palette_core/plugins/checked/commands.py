"""Commands at work."""

from __future__ import annotations

from collections.abc import Sequence

from palette_core.errors import CommandError
from palette_core.plugins.commands import Command, CommandEntry
from palette_core.plugins.guards import guarded, make
from palette_core.plugins.registries import Registered


def run_command(item: Registered[CommandEntry], arguments: Sequence[str]) -> int:
    """Run a command, and return its exit code.

    Raises:
        CommandError: it fails, or returns what is no exit code.
        SystemExit: it ends so.
        OSError: a file cannot be read or written.
    """
    command: Command
    command, who = make(item, {})
    code: object = guarded(
        who, CommandError, lambda: command.run(list(arguments)), passes=(SystemExit, OSError)
    )
    if code is None or (isinstance(code, int) and 0 <= code < 256):
        return int(code or 0)
    raise CommandError(f"{who} returned {code!r}, expected an exit code from 0 to 255, or None")
