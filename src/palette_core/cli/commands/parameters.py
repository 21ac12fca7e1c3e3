"""Parameters that several commands take: arguments, options, the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from palette_core.config import KMeansPalettizerConfig

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
        help="Example input as dtype[shape], such as float32[1,3,224,224], or by keyword as "
        "name=dtype[shape], such as input_ids=int64[1,16]; once per input, for a FACTORY that "
        "returns only a model.",
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
Functions = Annotated[
    Path | None,
    typer.Option(
        "--functions",
        metavar="FILE",
        help="YAML of the functions, names and metadata that the file is to have, for backends "
        "that take them; see the page on exporting.",
    ),
]
Parts = Annotated[
    Path | None,
    typer.Option(
        "--parts",
        metavar="FILE",
        help="YAML of parts of the model that get files of their own, in a folder; see the page on "
        "exporting.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="File to write; with --parts, a folder.")
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="NAME=VALUE",
        help="Text of your own to keep in the file; once per name.",
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(help="Export backend; default: the one that writes files named like --output."),
]
Report = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also write the report, of a model with errors of outputs on its inputs: .html "
        "is a page, .json the run, for palette report and compare, others a picture; once each.",
    ),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="CALLABLE",
        help="module:callable or file.py:callable that gets the palettized model and returns a "
        "number, or numbers by name, for the report.",
    ),
]
Workers = Annotated[int, typer.Option("--num-workers", min=1, help="Clustering processes.")]


def load_config(path: Path | None) -> KMeansPalettizerConfig:
    """Return the configuration of a file, its names checked, or the default one."""
    from palette_core.config import KMeansPalettizerConfig
    from palette_core.config.yaml_io import locator
    from palette_core.planning import check_names
    from palette_core.plugins.catalog import get_catalog

    if path is None:
        return KMeansPalettizerConfig()
    config = KMeansPalettizerConfig.from_yaml(path)
    check_names(config, get_catalog(), locator(path))
    return config
