"""The ``palette`` command, and what becomes of errors: one line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from palette_core.cli.added import CommandsWithAdded
from palette_core.cli.advice import how_to_install
from palette_core.cli.commands import looking, measuring, showing, starting, streaming, writing
from palette_core.cli.habits import is_debugging, is_quiet
from palette_core.cli.interrupts import ends_like_an_interrupt
from palette_core.errors import MissingBackendError, PaletteError, PaletteWarning, printable
from palette_core.plugins.blocking import VARIABLE, BlockList
from palette_core.plugins.catalog import get_catalog

# Typer brings click along under different names in different versions; this is its base error.
_UsageError: type[Exception] = next(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"
)

_INTERRUPTED = 130  # as shells say it

app = typer.Typer(
    name="palette",
    cls=CommandsWithAdded,
    help="Palettize PyTorch models: weights become small indices into look-up tables.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

# In the order of ``palette --help``.
app.command()(looking.plugins)
app.command("new-plugin")(starting.new_plugin)
app.command()(looking.validate)
app.command()(looking.plan)
app.command()(writing.palettize)
app.command("palettize-checkpoint")(streaming.palettize_checkpoint)
app.command()(writing.export)
app.command()(measuring.calibrate)
app.command()(measuring.allocate)
app.command()(showing.report)
app.command()(showing.compare)
app.command()(showing.sweep)
app.command()(looking.inspect)
app.command()(looking.verify)
app.command()(writing.demo)


def _block(items: list[str] | None) -> list[str] | None:
    """Extend the block list, for this process and those it starts."""
    if items:
        text = ",".join(filter(None, (os.environ.get(VARIABLE), *items)))
        BlockList.read(text)
        os.environ[VARIABLE] = text
        get_catalog.cache_clear()
    return items


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    block: Annotated[
        list[str] | None,
        typer.Option(
            "--block",
            metavar="NAME",
            help="Leave out a distribution of plug-ins, or one of them as kind:name; "
            f"once each, or {VARIABLE} with commas.",
            callback=_block,
            is_eager=True,
        ),
    ] = None,
) -> None:
    del block  # whoever looks for plug-ins reads the environment
    if version:
        from palette_core import __version__

        typer.echo(f"palette_core {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; bad input ends with one line on stderr and exit code 2.

    SIGTERM and SIGHUP end it as Ctrl-C does, with the exit code that shells give them.
    """
    warnings.showwarning = _show_warning
    with ends_like_an_interrupt() as ending:
        code = _run()
    if ending.signal is not None:
        code = 128 + ending.signal
    sys.exit(code)


def _run() -> int:
    try:
        code: int = app(standalone_mode=False) or 0
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.exit(2)  # the help has been printed
        _fail(error.format_message())  # type: ignore[attr-defined]
    except ValidationError as error:
        _fail("; ".join(item["msg"] for item in error.errors()))
    except MissingBackendError as error:
        _fail(f"{error}{how_to_install(error.name)}")
    except PaletteError as error:
        _fail(str(error))
    except PaletteWarning as warning:
        _fail(f"--strict takes this warning as an error: {warning}")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # Typer turns some interrupts into this code itself
        Console(stderr=True).print("palette: interrupted; no file was left half written")
    return code


def _fail(message: str) -> NoReturn:
    if is_debugging():
        traceback.print_exc()
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]palette: error:[/] {escape(' '.join(printable(message).split()))}",
        highlight=False,
    )
    sys.exit(2)


def _show_warning(message: Any, category: Any, *place: Any, **more: Any) -> None:
    del category, place, more
    if is_quiet():
        return
    Console(stderr=True, soft_wrap=True).print(
        f"[yellow]palette: warning:[/] {escape(printable(str(message)))}", highlight=False
    )
