"""Commands that show runs: one by one, beside each other, and many that one command makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palette_core.cli.commands.parameters import AsJson

RunFile = Annotated[
    Path, typer.Argument(metavar="RUN", help="What palette palettize --report run.json wrote.")
]


def report(
    run: RunFile,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Page (.html) or picture to write; default: RUN as .html."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a run: print its table, and write a page that opens in any browser, offline too."""
    from palette_core.cli.comparing import report as work

    work(run, output or run.with_suffix(".html"), as_json=as_json)
