"""Print what packed checkpoints hold and where they come from, and whether they are whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape

from palette_core.errors import printable
from palette_core.reporting import console as show
from palette_core.storage.checkpoint_folders import FolderReader, checkpoint_files
from palette_core.storage.checkpoint_reading import CheckpointReader
from palette_core.storage.checkpoint_verifying import Verification
from palette_core.storage.forms.lookup import stored_bits
from palette_core.storage.origins import Source
from palette_core.storage.origins import as_json as origins_as_json
from palette_core.streaming.planning import CheckpointPlan
from palette_core.streaming.verifying import Comparison

_MOST_LINES = 200  # of a configuration; one with a rule for every tensor is no reading


def contents(path: Path, value: CheckpointReader | FolderReader, *, as_json: bool) -> None:
    """Show what a packed checkpoint holds; one tensor at a time is read."""
    rows = _palettized(value)
    dense, dense_bytes = {}, 0
    for name in value.dense_names:
        tensor = value.dense(name)
        dense[name] = list(tensor.shape)
        dense_bytes += tensor.numel() * tensor.element_size()
    total = {
        "file_bytes": sum(file.stat().st_size for file in checkpoint_files(path)),
        "palettized_bytes": sum(row["bytes"] for row in rows),
        "dense_bytes": dense_bytes,
    }
    if as_json:
        origin = origins_as_json(value.origins)
        told = {"version": value.version, "palettized": rows, "dense": dense, "totals": total}
        show.print_json({**told, "origin": origin})
        return
    form = show.form_column(row["stored_form"] for row in rows)
    shown = show.table(
        escape(printable(str(path))),
        "tensor", "shape", "bits", *form, "LUT grid", "LUT dtype", "dtype", "algorithm", "dense",
        "packed",
        right=("bits", "dense", "packed"),
        spare=("LUT grid", "LUT dtype", "dtype", "algorithm", "dense"),
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


def _palettized(value: CheckpointReader | FolderReader) -> list[dict[str, Any]]:
    aliases: dict[str, list[str]] = {}
    for alias, first in value.aliases.items():
        aliases.setdefault(first, []).append(alias)
    rows = []
    for name in value.palettized_names:
        tensor, origin, form = value.palettized(name), value.origins.get(name), value.form(name)
        rows.append(
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
                "algorithm": origin.algorithm if origin else None,
                "seed": origin.seed if origin else None,
                "stored_form": form.name,
                "bytes": math.ceil(stored_bits(tensor, form.name) / 8),
                "dense_bytes": tensor.dense_size_in_bits() // 8,
            }
        )
    return rows


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


def comparison(path: Path, value: Comparison, *, as_json: bool) -> None:
    """Show how a palettized checkpoint compares with its source."""
    if as_json:
        rows = [
            {
                "name": item.name,
                "palettized": item.is_palettized,
                "relative_error": None if math.isnan(item.relative_error) else item.relative_error,
                "problem": item.problem or None,
            }
            for item in value.tensors
        ]
        files = [{"name": name, "problem": text or None} for name, text in value.files.items()]
        show.print_json({"passed": value.passed, "tensors": rows, "files": files})
        return
    shown = show.table(str(path), "tensor", "SNR dB", "state", right=("SNR dB",))
    for item in value.tensors:
        ratio = "" if math.isnan(item.relative_error) else f"{item.snr_db:.1f}"
        told = "exact" if ratio == "inf" else ratio
        good = "palettized" if item.is_palettized else "as in the source"
        shown.add_row(item.name, told, item.problem or good)
    show.console.print(shown)
    wrong = [name for name, text in value.files.items() if text]
    for name in wrong:
        line = f"{name}: {value.files[name]}"
        show.console.print(escape(printable(line)), highlight=False, soft_wrap=True)
    bad = sum(bool(item.problem) for item in value.tensors)
    verdict = f"all {len(value.tensors)} tensors and {len(value.files)} files are right"
    if bad or wrong:
        verdict = (
            f"{bad} of {len(value.tensors)} tensors and {len(wrong)} of {len(value.files)} files "
            "cannot be used"
        )
    show.console.print(verdict, highlight=False)


def checkpoint_plan(value: CheckpointPlan, *, as_json: bool) -> None:
    """Show what was decided about each tensor of a dense checkpoint, and by which rules."""
    planned = {plan.name: plan for plan in value.plan}
    reasons = {item.name: item.reason for item in value.plan.dense}
    reasons |= {item.name: item.reason for item in value.plan.skipped}
    rows: list[dict[str, Any]] = []
    for name, stored in value.stored.items():
        plan, recognized = planned.get(name), value.recognized[name]
        rows.append(
            {
                "name": stored,
                "recognized": recognized.name,
                "operation": recognized.operation,
                "axis": None if plan is None else plan.axis,
                "n_bits": None if plan is None else plan.spec.n_bits,
                "granularity": None if plan is None else plan.granularity,
                "algorithm": None if plan is None else plan.algorithm,
                "rule": None if plan is None else plan.rule,
                "reason": reasons.get(name),
            }
        )
    if as_json:
        notes, coverage = list(value.plan.notes), value.plan.coverage.to_dict()
        show.print_json({"tensors": rows, "notes": notes, "coverage": coverage})
        return
    shown = show.table(
        f"{len(planned)} of {len(rows)} tensors to palettize",
        "tensor", "recognized as", "bits", "granularity", "axis", "decided by, or why it is dense",
        right=("bits", "axis"),
        spare=("recognized as", "granularity", "axis"),
    )  # fmt: skip
    for row in rows:
        cells = [row["n_bits"], row["granularity"], row["axis"]]
        texts = ["" if cell is None else str(cell) for cell in cells]
        shown.add_row(row["name"], row["recognized"], *texts, row["rule"] or row["reason"] or "")
    show.console.print(shown)
    for note in value.plan.notes:
        show.console.print(f"[yellow]note:[/] {escape(printable(note))}")
    show.coverage(value.plan.coverage, advise=True)
