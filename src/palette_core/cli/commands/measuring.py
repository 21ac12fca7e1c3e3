"""Commands that measure what weights matter, and write what palettize then takes."""

from __future__ import annotations

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
    Workers,
    load_config,
)


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

    settings = load_config(config)
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
    scale_block_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="Inputs that share a scale, to choose from, such as 16,32,64; none is no blocks. "
            "Default: what the configuration says.",
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
        typer.Option(metavar="REGEX=BITS", help="Bits of the tensors of these whole names."),
    ] = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=BITS", help="Least bits of the tensors of these whole names."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="REGEX", help="Tensors to be left dense.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Leave out what this export backend cannot take.")
    ] = None,
    option: BackendOption = None,
    dynamic: Dynamic = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="File (JSON) of predicted losses, to go on from after an interrupt."),
    ] = None,
    num_workers: Workers = 1,
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="CALLABLE",
            help="module:callable or file.py:callable that gets a model and returns its loss, to "
            "compare predictions with at three points of the curve.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw predicted loss against size into this picture.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose bits for every tensor within a target size, and write a configuration."""
    from palette_core.cli import allocating, work
    from palette_core.cli.axes import read_dynamic
    from palette_core.cli.exporting import read_options

    settings = load_config(config)
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
        factory,
        inputs or (),
        settings,
        output,
        candidates=candidates,
        granularities=granularity or (),
        block_sizes=scale_block_size,
        data=data,
        dynamic=read_dynamic(dynamic or ()),
        measure=measure,
        plot=plot,
        as_json=as_json,
        **how,
    )
