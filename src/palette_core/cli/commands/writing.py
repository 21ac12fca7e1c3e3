"""Commands that write a palettized model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palette_core.cli.commands.parameters import (
    AsJson,
    Backend,
    BackendOption,
    ConfigFile,
    Dynamic,
    Evaluate,
    Factory,
    Functions,
    Input,
    Metadata,
    Output,
    Parts,
    Report,
    Workers,
    load_config,
)


def palettize(
    factory: Factory,
    output: Output,
    config: ConfigFile = None,
    inputs: Input = None,
    backend: Backend = None,
    option: BackendOption = None,
    dynamic: Dynamic = None,
    functions: Functions = None,
    metadata: Metadata = None,
    parts: Parts = None,
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
        typer.Option("--sequential", help="Feed each stage by those palettized before it."),
    ] = False,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="FACTORY",
            help="Callable that returns other batches, by which each stage is judged: plain "
            "k-means stays where it is better.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="CALLABLE",
            help="module:callable or file.py:callable that takes an output and its batch and "
            "returns a scalar; its gradient says which outputs of a layer matter.",
        ),
    ] = None,
    calibration_folder: Annotated[
        Path | None,
        typer.Option(help="Existing folder to keep matrices in instead of in memory."),
    ] = None,
    report: Report = None,
    evaluate: Evaluate = None,
    as_json: AsJson = False,
) -> None:
    """Palettize a model and write it in a backend's format.

    In the place of FACTORY stands, where a backend replaces the weights of programs that exist, the
    path of one, such as model.mlpackage; its weights are modules named as it stores them. Or that
    of a model folder or a file of weights, which becomes a folder as by palettize-checkpoint.
    """
    from palette_core.cli import checkpoints, programs, work
    from palette_core.cli.exporting import Content, make_target
    from palette_core.cli.factories import load_batches, load_callable, load_factory
    from palette_core.engine.warming import warm_up_for
    from palette_core.plugins.catalog import get_catalog

    settings = load_config(config)
    work.check_calibration(
        calibration,
        {
            "--sequential": sequential,
            "--held-out": held_out,
            "--loss": loss,
            "--calibration-folder": calibration_folder,
        },
    )
    about_models = {
        "--input": inputs,
        "--dynamic": dynamic,
        "--functions": functions,
        "--metadata": metadata,
        "--parts": parts,
        "--sensitivities": sensitivities,
        "--trust-sensitivities": trust_sensitivities,
        "--calibration": calibration,
        "--eval": evaluate,
    }
    work.check_report_files(report or ())
    is_program = programs.is_program(factory)  # some are folders
    if not is_program and checkpoints.is_checkpoint(factory):
        of_backends = {"--backend": backend, "--option": option}
        checkpoints.check_options(factory, about_models | of_backends, output)
        checkpoints.palettize(
            Path(factory), settings, output, num_workers=num_workers, as_json=as_json,
            reports=report or (),
        )  # fmt: skip
        return
    content = Content(dynamic or (), functions, metadata or (), parts)
    target = make_target(output, backend, option or (), content)
    if is_program:
        programs.check_options(factory, about_models)
        programs.palettize(
            Path(factory), settings, target, num_workers=num_workers, as_json=as_json,
            reports=report or (),
        )  # fmt: skip
        return
    warm_up_for(settings, get_catalog())
    loaded = load_factory(factory, inputs or ())
    calibrate = None
    if calibration is not None:
        calibrate = {
            "batches": load_batches(calibration),
            "sequential": sequential,
            "held_out": () if held_out is None else load_batches(held_out),
            "loss": None if loss is None else load_callable(loss),
            "folder": calibration_folder,
        }
    work.palettize(
        loaded,
        settings,
        target,
        num_workers=num_workers,
        sensitivities=sensitivities,
        trust_sensitivities=trust_sensitivities,
        calibrate=calibrate,
        reports=report or (),
        evaluate=None if evaluate is None else load_callable(evaluate),
        as_json=as_json,
    )


def export(
    factory: Factory,
    checkpoint: Annotated[
        Path, typer.Argument(help="Packed checkpoint (.safetensors) of that model.")
    ],
    output: Output,
    inputs: Input = None,
    backend: Backend = None,
    option: BackendOption = None,
    dynamic: Dynamic = None,
    functions: Functions = None,
    metadata: Metadata = None,
    parts: Parts = None,
    as_json: AsJson = False,
) -> None:
    """Convert a palettized model to a runtime's format, without palettizing it again."""
    from palette_core.cli.exporting import Content, export_checkpoint, make_target
    from palette_core.cli.factories import load_factory

    content = Content(dynamic or (), functions, metadata or (), parts)
    target = make_target(output, backend, option or (), content)
    loaded = load_factory(factory, inputs or ())
    export_checkpoint(loaded, checkpoint, target, as_json=as_json)


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
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Palettize all-MiniLM-L6-v2 to 4 bits in groups of 16 channels, end to end."""
    from palette_core.plugins.catalog import get_catalog
    from palette_core.plugins.warming import warm_up

    if config is None:
        warm_up(get_catalog(), lambda entry: entry.default_for_scalars)
    from palette_core.cli import work  # after that: it imports torch, which takes a while
    from palette_core.cli.exporting import make_target

    settings = None if config is None else load_config(config)
    work.check_report_files(report or ())
    work.demo(
        model,
        inputs or (),
        settings,
        make_target(output, "packed").path,
        num_workers=num_workers,
        reports=report or (),
        as_json=as_json,
    )
