"""Commands that show something and change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from palette_core.cli.commands.parameters import (
    AsJson,
    BackendOption,
    ConfigFile,
    Dynamic,
    Factory,
    Input,
    Parts,
    load_config,
)


def plugins(
    as_json: AsJson = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Show how long each distribution takes to import.")
    ] = False,
) -> None:
    """List everything that can be picked by name, and what is set aside as broken."""
    from palette_core.plugins.catalog import get_catalog
    from palette_core.plugins.checked.operations import usable_operations
    from palette_core.reporting import console as show

    show.plugins(usable_operations(get_catalog()), as_json=as_json, timings=timings)


def validate(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")], as_json: AsJson = False
) -> None:
    """Check a configuration, resolve its names, and print it with all defaults."""
    from palette_core.reporting import console as show

    show.config(load_config(config), as_json=as_json)


def plan(
    factory: Factory,
    config: ConfigFile = None,
    inputs: Input = None,
    backend: Annotated[
        str | None, typer.Option(help="Also refuse what this export backend cannot take.")
    ] = None,
    option: BackendOption = None,
    dynamic: Dynamic = None,
    parts: Parts = None,
    as_json: AsJson = False,
) -> None:
    """Show which tensor gets which spec, and the rule that decided. Changes nothing.

    In the place of FACTORY stands the path of a program or of a checkpoint, as for palettize.
    """
    from palette_core import KMeansPalettizer
    from palette_core.cli import checkpoints, programs
    from palette_core.cli.axes import dynamic_shapes, read_dynamic
    from palette_core.cli.exporting import read_options
    from palette_core.cli.factories import load_factory
    from palette_core.cli.parts import read_parts
    from palette_core.reporting import console as show

    settings = load_config(config)
    options, axes = read_options(option or ()), read_dynamic(dynamic or ())
    if programs.is_program(factory):
        about_models = {"--input": inputs, "--dynamic": dynamic, "--parts": parts}
        programs.check_options(factory, about_models)
        programs.plan(Path(factory), settings, backend, options, as_json=as_json)
        return
    if checkpoints.is_checkpoint(factory):
        about = {"--input": inputs, "--dynamic": dynamic, "--backend": backend, "--option": option}
        checkpoints.check_options(factory, {**about, "--parts": parts})
        checkpoints.plan(Path(factory), settings, as_json=as_json)
        return
    about_backend = {"--option": options, "--dynamic": axes, "--parts": parts}
    given = [flag for flag, value in about_backend.items() if value]
    if given and backend is None:
        flag = given[0]
        raise typer.BadParameter(f"{flag} is for the export backend; name it with --backend")
    loaded = load_factory(factory, inputs or ())
    made = KMeansPalettizer(loaded.model, settings).make_plan(
        loaded.example_inputs,
        backend=backend,
        backend_options=options,
        dynamic_shapes=dynamic_shapes(axes, loaded),
        parts=None if parts is None else read_parts(parts).parts(loaded),
    )
    show.plan(made, as_json=as_json)


def inspect(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Packed checkpoint: a .safetensors file, or a folder; or a folder of parts."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show what a packed checkpoint holds, and where it comes from; or parts of a model."""
    from palette_core.palettizer.parts.files import MANIFEST, read_manifest
    from palette_core.reporting import checkpoints as show
    from palette_core.reporting import parts
    from palette_core.storage import open_checkpoint

    if (checkpoint / MANIFEST).is_file():
        parts.contents(checkpoint, read_manifest(checkpoint), as_json=as_json)
        return
    with open_checkpoint(checkpoint) as reader:
        show.contents(checkpoint, reader, as_json=as_json)


def verify(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Packed checkpoint: a .safetensors file, or a folder; or, before OUT, the dense "
            "checkpoint that it was made of."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(help="Folder that palettize-checkpoint wrote, to be decoded and compared."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare every tensor of a packed checkpoint with its checksum; exit code 1 if one is off."""
    from palette_core.reporting import checkpoints as show
    from palette_core.storage.checkpoint_verifying import verify_checkpoint
    from palette_core.streaming.verifying import check_files, compare_checkpoints
    from palette_core.streaming.workplace import MANIFEST

    if out is not None:
        compared = compare_checkpoints(checkpoint, out)
        show.comparison(out, compared, as_json=as_json)
        if not compared.passed:
            raise typer.Exit(1)
        return
    found = verify_checkpoint(checkpoint)
    if (checkpoint / MANIFEST).is_file():
        found = replace(found, problems={**found.problems, **check_files(checkpoint)})
    show.verification(checkpoint, found, as_json=as_json)
    if not found.passed:
        raise typer.Exit(1)
