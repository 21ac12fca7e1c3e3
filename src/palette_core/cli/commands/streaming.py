"""The command that palettizes a checkpoint without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palette_core.cli.commands.parameters import (
    AsJson,
    ConfigFile,
    Report,
    Workers,
    load_config,
)


def palettize_checkpoint(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="Folder of files of weights (safetensors, or of torch.save), their index, or the "
            "one file.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write, new or empty.")
    ] = None,
    config: ConfigFile = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what was decided about each tensor, and stop.")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Calibration batches, for algorithms that go by the inputs of layers: a "
            "safetensors file of the model's keyword inputs, such as input_ids, each row of "
            "which is a batch; or module:callable that returns batches.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FACTORY",
            help="module:callable or file.py:callable that gets SRC and returns its model on the "
            "meta device, for --calibration; not needed where palette-core-transformers is "
            "installed and builds it from config.json.",
        ),
    ] = None,
    num_workers: Workers = 1,
    executor: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Cluster of dask.distributed or of ray, as dask://HOST:PORT or ray://HOST:PORT, "
            "whose workers see SRC and OUT under the same names. --num-workers 1 stands for as "
            "many as it has threads.",
        ),
    ] = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Palettize a checkpoint of any size, tensor by tensor, or block by block with calibration.

    Killed or failed, the same command goes on from where it was.
    """
    from palette_core.cli import checkpoints, work
    from palette_core.cli.calibration_files import calibration_of
    from palette_core.cli.executors import workers_at

    settings = load_config(config)
    if plan:
        checkpoints.plan(source, settings, as_json=as_json)
        return
    if output is None:
        raise typer.BadParameter("--output names the folder to write; or ask for --plan")
    work.check_report_files(report or ())
    data = calibration_of(source, calibration, model)
    with workers_at(executor, num_workers) as count:
        if executor is not None:  # whose workers may have been started in other folders
            source, output = source.absolute(), output.absolute()
        checkpoints.palettize(
            source,
            settings,
            output,
            num_workers=count,
            as_json=as_json,
            reports=report or (),
            **data,
        )
