"""Commands that plug-ins add: found when help is printed, or a name is none of palette's own."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from palette_core.cli.habits import common_options
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.commands import CommandEntry
from palette_core.plugins.kinds import COMMAND
from palette_core.plugins.registries import Registered


class _PassedOn(TyperCommand):
    """A command to which all that follows its name is handed unread, ``--help`` too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments as they are."""
        ctx.args = list(args)
        return []


class CommandsWithAdded(TyperGroup):
    """The group of commands, with those of plug-ins after its own.

    All of its own take `common_options`, before their name and behind it.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params.extend(common_options())
        for command in self.commands.values():
            command.params.extend(common_options())

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of ``palette --help``."""
        names = [item.entry.name for item in get_catalog()[COMMAND]]
        # What two claim is an error when it is called, not when help is printed.
        added = [name for name in sorted(names) if names.count(name) == 1]
        return [*super().list_commands(ctx), *added]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, or None for a name that nobody knows."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        registry = get_catalog()[COMMAND]
        known = cmd_name in registry.names() or registry.is_blocked(cmd_name)
        return _wrapped(registry.find(cmd_name)) if known else None


def _wrapped(item: Registered[CommandEntry]) -> Any:
    app = typer.Typer(add_completion=False)

    @app.command(item.entry.name, cls=_PassedOn, help=item.entry.summary)
    def run(ctx: typer.Context) -> int:
        from palette_core.plugins.checked.commands import run_command

        return run_command(item, ctx.args)

    return get_command(app)
