"""Commands, their options, and what becomes of errors: one line on stderr and exit code 2."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from palette_core.errors import PaletteError

# Typer brings click along under different names in different versions; this is its base error.
_UsageError: type[Exception] = next(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"
)

_INTERRUPTED = 130  # as shells say it

app = typer.Typer(
    name="palette",
    help="Palettize PyTorch models: weights become small indices into look-up tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Factory = Annotated[
    str,
    typer.Argument(
        metavar="FACTORY",
        help="module:callable or file.py:callable that returns a model and its example inputs.",
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Example input as dtype[shape], such as float32[1,3,224,224]; once per input, for "
        "a FACTORY that returns only a model.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML configuration; default: 4 bits per tensor."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Workers = Annotated[int, typer.Option("--num-workers", min=1, help="Clustering processes.")]


@app.command()
def plugins(as_json: AsJson = False) -> None:
    """List every clusterer, granularity, LUT quantizer, backend and training strategy."""
    from palette_core.cli import show
    from palette_core.plugins import get_catalog

    show.plugins(get_catalog(), as_json=as_json)


@app.command()
def validate(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")], as_json: AsJson = False
) -> None:
    """Check a configuration, resolve its names, and print it with all defaults."""
    from palette_core.cli import show

    show.config(_load_config(config), as_json=as_json)


@app.command()
def plan(
    factory: Factory,
    config: ConfigFile = None,
    inputs: Input = None,
    backend: Annotated[
        str | None, typer.Option(help="Also refuse what this export backend cannot take.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which tensor gets which spec, and the rule that decided. Changes nothing."""
    from palette_core import KMeansPalettizer
    from palette_core.cli import show
    from palette_core.cli.factories import load_factory

    settings = _load_config(config)
    loaded = load_factory(factory, inputs or ())
    made = KMeansPalettizer(loaded.model, settings).make_plan(
        loaded.example_inputs, backend=backend
    )
    show.plan(made, as_json=as_json)


@app.command()
def palettize(
    factory: Factory,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    config: ConfigFile = None,
    inputs: Input = None,
    backend: Annotated[str, typer.Option(help="Export backend.")] = "torch",
    num_workers: Workers = 1,
    sensitivities: Annotated[
        Path | None, typer.Option(help="File of sensitivities for weighted clustering.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FACTORY",
            help="module:callable or file.py:callable that returns calibration batches, for "
            "algorithms that look at the layers' inputs.",
        ),
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option("--sequential", help="Feed each block by those palettized before it."),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw sizes and noise per layer into this picture.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Palettize a model and write it in a backend's format."""
    from palette_core.cli import work
    from palette_core.cli.factories import FactoryError, load_batches, load_factory

    settings = _load_config(config)
    work.check_output(output, backend, plot)
    if sequential and calibration is None:
        raise FactoryError("--sequential is about calibration; give batches with --calibration")
    loaded = load_factory(factory, inputs or ())
    batches = None if calibration is None else load_batches(calibration)
    work.palettize(
        loaded,
        settings,
        output,
        backend=backend,
        num_workers=num_workers,
        sensitivities=sensitivities,
        batches=batches,
        sequential=sequential,
        plot=plot,
        as_json=as_json,
    )


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="Packed checkpoint (.safetensors).")],
    as_json: AsJson = False,
) -> None:
    """Show what a packed checkpoint holds."""
    from palette_core.checkpoint import read_checkpoint
    from palette_core.cli import show

    show.checkpoint(checkpoint, read_checkpoint(checkpoint), as_json=as_json)


@app.command()
def demo(
    model: Annotated[
        str | None,
        typer.Option(metavar="FACTORY", help="Another model, as FACTORY of palettize."),
    ] = None,
    inputs: Input = None,
    config: ConfigFile = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Packed checkpoint to write.")
    ] = Path("palette-demo.safetensors"),
    num_workers: Workers = 1,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw sizes and noise per layer into this picture.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Palettize all-MiniLM-L6-v2 to 4 bits in groups of 16 channels, end to end."""
    from palette_core.cli import work

    settings = None if config is None else _load_config(config)
    work.check_output(output, "torch", plot)
    work.demo(
        model,
        inputs or (),
        settings,
        output,
        num_workers=num_workers,
        plot=plot,
        as_json=as_json,
    )


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from palette_core import __version__

        typer.echo(f"palette_core {__version__}")
        raise typer.Exit


def _load_config(path: Path | None) -> Any:
    from palette_core.config import KMeansPalettizerConfig
    from palette_core.config.yaml_io import locator
    from palette_core.planning import check_names
    from palette_core.plugins import get_catalog

    if path is None:
        return KMeansPalettizerConfig()
    config = KMeansPalettizerConfig.from_yaml(path)
    check_names(config, get_catalog(), locator(path))
    return config


def main() -> None:
    """Run the command line; bad input ends with one line on stderr and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        code = app(standalone_mode=False) or 0
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.exit(2)  # the help has been printed
        _fail(error.format_message())  # type: ignore[attr-defined]
    except ValidationError as error:
        _fail("; ".join(item["msg"] for item in error.errors()))
    except PaletteError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # Typer turns some interrupts into this code itself
        Console(stderr=True).print("palette: interrupted; no file was written")
    sys.exit(code)


def _fail(message: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]palette: error:[/] {escape(' '.join(message.split()))}", highlight=False
    )
    sys.exit(2)


def _show_warning(message: Any, category: Any, *place: Any, **more: Any) -> None:
    del category, place, more
    Console(stderr=True, soft_wrap=True).print(
        f"[yellow]palette: warning:[/] {escape(str(message))}", highlight=False
    )
