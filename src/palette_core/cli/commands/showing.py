"""Commands that show runs: one by one, beside each other, and many that one command makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palette_core.cli.commands.parameters import AsJson, Workers

RunFile = Annotated[
    Path, typer.Argument(metavar="RUN", help="What palette palettize --report run.json wrote.")
]

By = Annotated[
    str | None,
    typer.Option(
        help="Score by which runs are judged, or 'output error', 'weight error'; default: the "
        "first that all have."
    ),
]
Minimize = Annotated[
    bool, typer.Option("--minimize", help="Of the score, less is better, as of a perplexity.")
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
    from palette_core.cli.showing import report as work

    work(run, output or run.with_suffix(".html"), as_json=as_json)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Two or more, as palette report takes them."),
    ],
    by: By = None,
    minimize: Minimize = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Page (.html) or .json to write, or .csv of the runs."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show runs beside each other: bits, errors, scores, the Pareto front, layers that differ."""
    from palette_core.cli.showing import compare as work

    work(runs, by, output, minimize=minimize, as_json=as_json)


def sweep(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="YAML with model (a FACTORY) and grid (values by field of a spec).",
        ),
    ],
    evaluate: Annotated[
        str,
        typer.Option(
            "--eval",
            metavar="CALLABLE",
            help="module:callable or file.py:callable that gets a palettized model and returns a "
            "number, or numbers by name.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the runs, to go on in too; default: named as CONFIG."
        ),
    ] = None,
    by: By = None,
    minimize: Minimize = False,
    num_workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Palettize a model in every way of a grid, evaluate each, and compare: a table and a page.

    A sweep that was interrupted or killed goes on with the same command.
    """
    from palette_core.cli.sweeping import sweep as work

    work(
        config,
        evaluate,
        output or config.with_suffix(""),
        by=by,
        minimize=minimize,
        num_workers=num_workers,
        as_json=as_json,
    )
