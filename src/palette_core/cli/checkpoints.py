"""Work of commands on a dense checkpoint in the place of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palette_core.cli.factories import FactoryError
from palette_core.config import KMeansPalettizerConfig
from palette_core.plugins.catalog import get_catalog
from palette_core.reporting import checkpoints as told
from palette_core.reporting import console as show
from palette_core.reporting.files import write_reports
from palette_core.streaming import palettize_checkpoint, plan_checkpoint
from palette_core.streaming.formats.known import is_named_like_one


def is_checkpoint(text: str) -> bool:
    """Return whether a text names a model folder, a file of weights or an index of several."""
    path = Path(text)
    if not path.exists():
        return False
    return is_named_like_one(path)  # a folder may be a package of Python


def check_options(path: str, options: Mapping[str, Any], output: Path | None = None) -> None:
    """Refuse options that are about a model, and files that are made of one.

    Raises:
        FactoryError: naming the first.
    """
    for name, value in options.items():
        if value:
            raise FactoryError(
                f"{name} is about a model, and {path} is a checkpoint; leave it out, or give a "
                "FACTORY; palette palettize-checkpoint has calibration for checkpoints"
            )
    written = {item.entry.suffix for item in get_catalog().export_backends}
    if output is not None and output.suffix in written:
        raise FactoryError(
            f"--output {output} is a file, and a checkpoint without its model becomes a folder; "
            "name one, or give a FACTORY"
        )


def plan(source: Path, config: KMeansPalettizerConfig, *, as_json: bool) -> None:
    """Show what was decided about each tensor, and by which rule."""
    told.checkpoint_plan(plan_checkpoint(source, config), as_json=as_json)


def palettize(
    source: Path,
    config: KMeansPalettizerConfig,
    output: Path,
    *,
    num_workers: int,
    as_json: bool,
    reports: Sequence[Path],
    **data: Any,
) -> None:
    """Palettize a checkpoint into a folder, and tell sizes.

    ``data`` is what `palettize_checkpoint` takes for calibration.
    """
    report = palettize_checkpoint(source, config, output, num_workers=num_workers, **data)
    write_reports(report, reports)
    before = sum(row.dense_bytes for row in report.tensors)
    after = sum(row.palettized_bytes for row in report.tensors)
    bits = report.bits_per_palettized_weight
    if as_json:
        totals: dict[str, Any] = {"dense_bytes": before, "palettized_bytes": after}
        totals |= {"bits_per_palettized_weight": bits, "folder": str(output)}
        show.print_json({**report.to_dict(views=False), "totals": totals})
        return
    show.report(report)
    text = f"{show.size(before)} to {show.size(after)}, {bits:.3f} bits per palettized weight"
    show.totals({"palettized": text, "folder": str(output)})
