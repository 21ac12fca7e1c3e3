"""Print what packed checkpoints hold and where they come from, and whether they are whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape

from palette_core.errors import printable
from palette_core.reporting import console as show
from palette_core.storage.checkpoint_verifying import Verification
from palette_core.storage.forms.registry import stored_bits
from palette_core.storage.model_checkpoints import Checkpoint
from palette_core.storage.origins import Source
from palette_core.storage.origins import as_json as origins_as_json

_MOST_LINES = 200  # of a configuration; one with a rule for every tensor is no reading


def contents(path: Path, value: Checkpoint, *, as_json: bool) -> None:
    """Show what a packed checkpoint holds."""
    rows = _palettized(value)
    dense = {name: list(tensor.shape) for name, tensor in value.dense.items()}
    total = {
        "file_bytes": path.stat().st_size,
        "palettized_bytes": sum(row["bytes"] for row in rows),
        "dense_bytes": sum(t.numel() * t.element_size() for t in value.dense.values()),
    }
    if as_json:
        origin = origins_as_json(value.origins)
        told = {"version": value.version, "palettized": rows, "dense": dense, "totals": total}
        show.print_json({**told, "origin": origin})
        return
    form = show.form_column(value.stored_forms.values())
    shown = show.table(
        escape(printable(str(path))),
        "tensor", "shape", "bits", *form, "LUT grid", "LUT dtype", "dtype", "algorithm", "dense",
        "packed",
        right=("bits", "dense", "packed"),
    )  # fmt: skip
    for row in rows:
        shown.add_row(
            " = ".join([row["name"], *row["tied"]]),
            show.shape(row["shape"]),
            str(row["n_bits"]) + (f" ×{row['cluster_dim']}" if row["cluster_dim"] > 1 else ""),
            *([row["stored_form"]] if form else []),
            show.shape(row["grid"]),
            row["lut_dtype"],
            row["dtype"],
            row["algorithm"] or "",
            show.size(row["dense_bytes"]),
            show.size(row["bytes"]),
        )
    show.console.print(shown)
    show.totals(
        {
            "dense tensors": f"{len(dense)}, {show.size(total['dense_bytes'])}",
            "file": show.size(total["file_bytes"]),
        }
    )
    sources: list[Source] = []
    for made in value.origins.values():
        if made.source not in sources:
            sources.append(made.source)
            _source(made.source)


def _source(value: Source) -> None:
    """Show the plug-ins and the configuration that palettes were made by."""
    made_by = show.table("Made by", "plug-in", "distribution")
    for name, distribution in value.plugins.items():
        made_by.add_row(name, str(distribution))
    show.console.print()
    show.console.print(made_by)
    text = yaml.safe_dump(dict(value.config), sort_keys=False, allow_unicode=True)
    if text.count("\n") > _MOST_LINES:
        text = f"a configuration of {text.count(chr(10)):,} lines, which --json prints"
    show.console.print(escape(printable(text)), highlight=False, soft_wrap=True)


def _palettized(value: Checkpoint) -> list[dict[str, Any]]:
    aliases: dict[str, list[str]] = {}
    for alias, first in value.aliases.items():
        aliases.setdefault(first, []).append(alias)
    return [
        {
            "name": name,
            "tied": aliases.get(name, []),
            "shape": list(tensor.shape),
            "n_bits": tensor.n_bits,
            "cluster_dim": tensor.cluster_dim,
            "grid": list(tensor.grid),
            "lut_dtype": str(tensor.lut.dtype).removeprefix("torch."),
            "per_channel_scale": tensor.scale is not None,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "algorithm": origin.algorithm if (origin := value.origins.get(name)) else None,
            "seed": origin.seed if origin else None,
            "stored_form": value.stored_forms[name],
            "bytes": math.ceil(stored_bits(tensor, value.stored_forms[name]) / 8),
            "dense_bytes": tensor.dense_size_in_bits() // 8,
        }
        for name, tensor in value.palettized.items()
    ]


def verification(path: Path, value: Verification, *, as_json: bool) -> None:
    """Show whether every tensor of a packed checkpoint is as it was written."""
    if as_json:
        show.print_json(
            {
                "version": value.version,
                "checksums": value.has_checksums,
                "passed": value.passed,
                "tensors": [
                    {"name": name, "problem": problem or None}
                    for name, problem in value.problems.items()
                ],
            }
        )
        return
    good = "as written" if value.has_checksums else "readable; it has no checksum"
    shown = show.table(str(path), "tensor", "state")
    for name, problem in value.problems.items():
        shown.add_row(name, problem or good)
    show.console.print(shown)
    wrong = sum(map(bool, value.problems.values()))
    if wrong:
        verdict = f"{wrong} of {len(value.problems)} tensors cannot be used"
    elif value.has_checksums:
        verdict = f"all {len(value.problems)} tensors are as they were written"
    else:
        verdict = (
            f"a file of format version {value.version}, which has no checksums: damage to it may "
            "not show; load it and write it again"
        )
    show.console.print(verdict, highlight=False)
