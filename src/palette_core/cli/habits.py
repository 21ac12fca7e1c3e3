"""Options that all commands take: how much is told, and what is an error."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.main import get_command

from palette_core.errors import PaletteWarning

LOGGER = "palette_core"
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_debugging = False


def is_debugging() -> bool:
    """Return whether errors are to be shown with their tracebacks."""
    return _debugging


def is_quiet() -> bool:
    """Return whether nothing but errors is to be told.

    Levels that a model's libraries give the loggers of the whole process do not count.
    """
    return logging.getLogger(LOGGER).level > logging.WARNING


def common_options() -> list[Any]:
    """Return the options, new ones at each call."""
    app = typer.Typer(add_completion=False)
    app.command()(_options)
    return list(get_command(app).params)


def _verbose(count: int) -> None:
    if not count:
        return
    from rich.console import Console
    from rich.logging import RichHandler

    logger = logging.getLogger(LOGGER)
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False)
    if not any(isinstance(each, RichHandler) for each in logger.handlers):
        logger.addHandler(handler)
    logger.setLevel(_LEVELS[min(count, 2)])


def _quiet(asked: bool) -> None:
    if not asked:
        return
    from palette_core.reporting import console

    logging.getLogger(LOGGER).setLevel(logging.ERROR)
    console.console.quiet = True


def _debug(asked: bool) -> None:
    global _debugging  # noqa: PLW0603 - of the process, as its warnings and loggers are
    _debugging = _debugging or asked


def _strict(asked: bool) -> None:
    if asked:
        warnings.simplefilter("error", PaletteWarning)


def _flag(*names: str, act: Callable[[bool], None], help: str) -> Any:
    return typer.Option(
        *names, callback=act, expose_value=False, is_eager=True, show_default=False, help=help
    )


def _options(
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            callback=_verbose,
            expose_value=False,
            is_eager=True,
            show_default=False,
            help="Tell each step; -vv each weight.",
        ),
    ] = 0,
    quiet: Annotated[
        bool, _flag("--quiet", "-q", act=_quiet, help="No tables, bars, warnings: only errors.")
    ] = False,
    debug: Annotated[
        bool, _flag("--debug", act=_debug, help="Show where errors come from, in your code too.")
    ] = False,
    strict: Annotated[
        bool, _flag("--strict", act=_strict, help="Take warnings as errors.")
    ] = False,
) -> None:
    """Take the options of all commands, whose callbacks do what they ask for."""
