"""The command that starts a plug-in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palette_core.cli.new_plugin import make_plugin, offered


def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the distribution, such as palette-lloyd.")],
    kind: Annotated[
        str,
        typer.Option(help=f"What the plug-in provides: {', '.join(offered())}."),
    ],
    into: Annotated[Path, typer.Option(help="Folder in which its own folder is made.")] = Path(),
) -> None:
    """Make a plug-in distribution that installs and keeps its contract, to be changed."""
    folder = make_plugin(name, kind, into)
    print(f"{folder} is made; {folder / 'README.md'} says how to install it and what to change")
