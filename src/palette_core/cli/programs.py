"""The commands about a program that exists, in the place of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palette_core.cli.exporting import Target
from palette_core.cli.factories import FactoryError
from palette_core.cli.going_on import going_on_later
from palette_core.config import KMeansPalettizerConfig
from palette_core.plugins.catalog import get_catalog
from palette_core.programs import palettize_program, plan_program
from palette_core.reporting import console as show
from palette_core.reporting.files import write_reports


def is_program(text: str) -> bool:
    """Return whether a text names a program whose weights a backend replaces."""
    suffixes = {item.entry.suffix for item in get_catalog().export_backends
                if item.entry.edits_programs}  # fmt: skip
    return Path(text).suffix in suffixes


def check_options(path: str, options: Mapping[str, Any]) -> None:
    """Refuse options that are about a model.

    Raises:
        FactoryError: naming the first.
    """
    for name, value in options.items():
        if value:
            raise FactoryError(f"{name} is about a model, and {path} is a program; leave it out")


def plan(
    path: Path,
    config: KMeansPalettizerConfig,
    backend: str | None,
    options: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Show what would be palettized, as for a model; what cannot be stored is refused."""
    made = plan_program(path, config, backend=backend, backend_options=options)
    show.plan(made, as_json=as_json)


def palettize(
    path: Path,
    config: KMeansPalettizerConfig,
    target: Target,
    *,
    num_workers: int,
    as_json: bool,
    reports: Sequence[Path],
) -> None:
    """Show the plan, palettize, write, and tell sizes."""
    chosen: dict[str, Any] = {"backend": target.backend, "backend_options": target.options}
    if not as_json:
        show.plan(plan_program(path, config, **chosen), as_json=False)
    before = target.size(path)  # which may be where it is written
    with going_on_later(target.path) as folder:
        report = palettize_program(
            path, target.path, config, num_workers=num_workers, work_folder=folder, **chosen
        )
    write_reports(report, reports)
    after = target.size(target.path)
    if as_json:
        totals = {"dense_bytes": before, "file_bytes": after, "file": str(target.path)}
        show.print_json({**report.to_dict(views=False), **totals})
        return
    show.console.print(f"{target.path}: {after:,} bytes, {before:,} before")
