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

from palette_core.cli.new_plugin import Kind
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
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="Option of the export backend, as palette plugins lists them; once per option.",
    ),
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="INPUT:AXIS[=MIN..MAX]",
        help="An axis of an input whose length may vary, such as input_ids:1=1..128; "
        "once per axis. Everything else keeps the shape of the example inputs.",
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(help="Export backend; default: the one that writes files named like --output."),
]
Workers = Annotated[int, typer.Option("--num-workers", min=1, help="Clustering processes.")]


@app.command()
def plugins(
    as_json: AsJson = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Show how long each distribution takes to import.")
    ] = False,
) -> None:
    """List everything that can be picked by name, and what is set aside as broken."""
    from palette_core.cli import show
    from palette_core.plugins import get_catalog

    show.plugins(get_catalog(), as_json=as_json, timings=timings)


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the distribution, such as palette-lloyd.")],
    kind: Annotated[Kind, typer.Option(help="What the plug-in provides.")],
    into: Annotated[Path, typer.Option(help="Folder in which its own folder is made.")] = Path(),
) -> None:
    """Make a plug-in distribution that installs and keeps its contract, to be changed."""
    from palette_core.cli.new_plugin import make_plugin

    folder = make_plugin(name, kind, into)
    print(f"{folder} is made; {folder / 'README.md'} says how to install it and what to change")


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
    option: BackendOption = None,
    as_json: AsJson = False,
) -> None:
    """Show which tensor gets which spec, and the rule that decided. Changes nothing."""
    from palette_core import KMeansPalettizer
    from palette_core.cli import show
    from palette_core.cli.exporting import read_options
    from palette_core.cli.factories import load_factory

    settings = _load_config(config)
    options = read_options(option or ())
    if options and backend is None:
        raise typer.BadParameter("--option is for the export backend; name it with --backend")
    loaded = load_factory(factory, inputs or ())
    made = KMeansPalettizer(loaded.model, settings).make_plan(
        loaded.example_inputs, backend=backend, backend_options=options
    )
    show.plan(made, as_json=as_json)


@app.command()
def palettize(
    factory: Factory,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    config: ConfigFile = None,
    inputs: Input = None,
    backend: Backend = None,
    option: BackendOption = None,
    dynamic: Dynamic = None,
    num_workers: Workers = 1,
    sensitivities: Annotated[
        Path | None, typer.Option(help="File of sensitivities for weighted clustering.")
    ] = None,
    trust_sensitivities: Annotated[
        bool, typer.Option(help="Also take sensitivities measured on other weights.")
    ] = False,
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
    from palette_core.cli.exporting import make_target
    from palette_core.cli.factories import FactoryError, load_batches, load_factory

    settings = _load_config(config)
    if sequential and calibration is None:
        raise FactoryError("--sequential is about calibration; give batches with --calibration")
    target = make_target(output, backend, option or (), dynamic or ())
    work.check_picture_name(plot)
    loaded = load_factory(factory, inputs or ())
    batches = None if calibration is None else load_batches(calibration)
    work.palettize(
        loaded,
        settings,
        target,
        num_workers=num_workers,
        sensitivities=sensitivities,
        trust_sensitivities=trust_sensitivities,
        batches=batches,
        sequential=sequential,
        plot=plot,
        as_json=as_json,
    )


@app.command()
def export(
    factory: Factory,
    checkpoint: Annotated[
        Path, typer.Argument(help="Packed checkpoint (.safetensors) of that model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    inputs: Input = None,
    backend: Backend = None,
    option: BackendOption = None,
    dynamic: Dynamic = None,
    as_json: AsJson = False,
) -> None:
    """Convert a palettized model to a runtime's format, without palettizing it again."""
    from palette_core.cli.exporting import export_checkpoint, make_target
    from palette_core.cli.factories import load_factory

    target = make_target(output, backend, option or (), dynamic or ())
    loaded = load_factory(factory, inputs or ())
    export_checkpoint(loaded, checkpoint, target, as_json=as_json)


@app.command()
def calibrate(
    factory: Factory,
    data: Annotated[
        str,
        typer.Option(
            metavar="CALLABLE",
            help="module:callable or file.py:callable that yields batches (inputs, target).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of sensitivities to write.")],
    loss: Annotated[
        str,
        typer.Option(
            metavar="LOSS",
            help="A loss of torch.nn.functional, or module:callable of (output, target).",
        ),
    ] = "cross_entropy",
    config: ConfigFile = None,
    inputs: Input = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep the sums in the memory of the CPU.")
    ] = False,
    num_workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Measure how much each weight matters to a loss, for palettize --sensitivities."""
    from palette_core.cli import calibrating
    from palette_core.cli.factories import load_factory

    settings = _load_config(config)
    loaded = load_factory(factory, inputs or ())
    calibrating.calibrate(
        loaded,
        settings,
        output,
        data=data,
        loss=loss,
        offload=offload,
        num_workers=num_workers,
        as_json=as_json,
    )


@app.command()
def allocate(
    factory: Factory,
    target_bpw: Annotated[
        float, typer.Option("--target-bpw", help="Bits per weight on average, at most.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML configuration to write.")],
    config: ConfigFile = None,
    inputs: Input = None,
    candidates: Annotated[
        str, typer.Option(help="Bits to choose from for every tensor.")
    ] = "2,3,4,6,8",
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            help="Granularity to choose from: per_tensor, a group size such as 16, 16@1 for axis "
            "1; once each. Default: what the configuration says."
        ),
    ] = None,
    over: Annotated[
        str, typer.Option(help="Average over 'palettized' weights, or over the whole 'model'.")
    ] = "palettized",
    metric: Annotated[str, typer.Option(help="Sensitivity metric.")] = "data_free",
    metric_option: Annotated[
        list[str] | None,
        typer.Option("--metric-option", metavar="NAME=VALUE", help="Option of the metric."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="CALLABLE",
            help="module:callable or file.py:callable that yields model inputs, for metrics and "
            "algorithms that look at calibration batches.",
        ),
    ] = None,
    sensitivities: Annotated[
        Path | None, typer.Option(help="File of sensitivities (palette calibrate).")
    ] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=BITS", help="Bits of the tensors of these names."),
    ] = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=BITS", help="Least bits of the tensors of these names."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="REGEX", help="Tensors to be left dense.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Leave out what this export backend cannot take.")
    ] = None,
    option: BackendOption = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="File (JSON) of predicted losses, to go on from after an interrupt."),
    ] = None,
    num_workers: Workers = 1,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw predicted loss against size into this picture.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose bits for every tensor within a target size, and write a configuration."""
    from palette_core.cli import allocating, work
    from palette_core.cli.exporting import read_options
    from palette_core.cli.factories import load_factory

    settings = _load_config(config)
    work.check_picture_name(plot)
    how = {
        "target_bpw": target_bpw,
        "over": over,
        "metric": metric,
        "metric_options": read_options(metric_option or (), "--metric-option"),
        "sensitivity_path": sensitivities,
        "fixed": read_options(fixed or (), "--fixed", names_are_patterns=True),
        "minimum": read_options(minimum or (), "--minimum", names_are_patterns=True),
        "exclude": exclude or (),
        "backend": backend,
        "backend_options": read_options(option or ()),
        "cache": cache,
        "num_workers": num_workers,
    }
    allocating.run(
        load_factory(factory, inputs or ()),
        settings,
        output,
        candidates=candidates,
        granularities=granularity or (),
        data=data,
        plot=plot,
        as_json=as_json,
        **how,
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
    from palette_core.cli.exporting import make_target

    settings = None if config is None else _load_config(config)
    work.check_picture_name(plot)
    work.demo(
        model,
        inputs or (),
        settings,
        make_target(output, "torch").path,
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
