"""Page of one run: totals, weights, distributions, timings."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from palette_core._common.files import atomic_path, check_place
from palette_core.engine.results import Report, TensorReport
from palette_core.errors import printable
from palette_core.reporting.html.templates import render
from palette_core.reporting.words import shape, size

_HEAVIEST = 5


def check_page(path: Path) -> None:
    """Refuse, before any work, a place where no page can be written.

    Raises:
        OSError: the folder does not exist or cannot be written to, or it is a folder itself.
    """
    check_place(path, is_file=True)


def write_page(text: str, path: Path) -> None:
    """Write a page, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_report_page(report: Report, path: Path) -> None:
    """Write the page of a report, under the name of its file."""
    write_page(report_page(report, path.stem), path)


def framed(page: str) -> str:
    """Return a page in a frame, for notebooks: its styles and scripts stay inside."""
    return (
        f'<iframe srcdoc="{html.escape(page)}" title="palettized weights" '
        'style="width:100%;height:760px;border:0" sandbox="allow-scripts"></iframe>'
    )


def report_page(report: Report, title: str) -> str:
    """Return the page of a report."""
    heaviest, by = _heaviest(report.tensors)
    return render(
        "report.html.j2",
        title=printable(title),
        report=report,
        run=report.run,
        size=size,
        tiles=_tiles(report),
        sizes=_sizes(report),
        heaviest=heaviest,
        heaviest_by=by,
        rows=[*_palettized(report.tensors), *_dense(report)],
        views=[_opened(row) for row in report.tensors],
        config=_config(report.run.config),
    )


def _tiles(report: Report) -> list[dict[str, str]]:
    run, found = report.run, []

    def tile(value: str, name: str) -> None:
        found.append({"value": value, "name": name})

    if run.bits_per_weight is not None:
        tile(f"{run.bits_per_weight:.2f}", "bits per weight, whole model")
    tile(f"{report.bits_per_palettized_weight:.2f}", "bits per palettized weight")
    if run.bytes is not None and run.dense_bytes is not None:
        times = f", {run.dense_bytes / run.bytes:.1f} times smaller" if run.bytes else ""
        tile(size(run.bytes), f"from {size(run.dense_bytes)}{times}")
    covered = report.coverage
    if covered.elements:
        share = f"{covered.palettized / covered.elements:.0%}"
        tile(share, f"of weights palettized, {len(report.tensors)} tensors")
    if run.output_error is not None:
        tile(percent(run.output_error), "squared error of the model's outputs")
    for name, score in run.scores.items():
        tile(f"{score:.5g}", name)
    return found


def _sizes(report: Report) -> list[dict[str, Any]]:
    before = sum(row.dense_bytes for row in report.tensors)
    after = sum(row.palettized_bytes for row in report.tensors)
    total = report.run.dense_bytes
    rest = max(0, total - before) if total is not None else _listed(report)
    whole = max(1, before + rest)
    return [
        {
            "name": name,
            "parts": [(kind, 100 * part / whole), ("dense", 100 * rest / whole)],
            "text": size(part + rest),
        }
        for name, kind, part in (("dense", "gain", before), ("palettized", "palette", after))
    ]


def _listed(report: Report) -> int:
    return sum(item.bytes for item in report.left)


def _heaviest(rows: Sequence[TensorReport]) -> tuple[list[dict[str, Any]], str]:
    """Return the weights that carry most of the loss, and how that was found out."""
    if any(row.loss_share is not None for row in rows):
        by = (
            "How much of the squared error of the model's outputs goes when this weight alone is "
            "dense. The shares need not add up to one; 16 weights at most were tried."
        )
        shares = {at: row.loss_share for at, row in enumerate(rows) if row.loss_share is not None}
    else:
        by = "Share of the squared error of all weights; errors of outputs were not measured."
        noise = {at: row.squared_error for at, row in enumerate(rows)}
        total = sum(noise.values())
        shares = {at: error / total for at, error in noise.items() if error} if total else {}
    found = sorted(shares.items(), key=lambda item: -item[1])[:_HEAVIEST]
    widest = max((share for _, share in found), default=0.0) or 1.0
    return [
        {
            "at": at,
            "name": printable(rows[at].name),
            "share": max(0.0, 100 * share / widest),
            "text": percent(share),
        }
        for at, share in found
    ], by


def _palettized(rows: Sequence[TensorReport]) -> list[dict[str, Any]]:
    return [
        {
            "at": at,
            "name": printable(row.name),
            "cells": [
                _text(shape(row.shape), math.prod(row.shape)),
                _number(bits(row), row.n_bits / row.cluster_dim),
                _text(row.granularity),
                _text(row.algorithm),
                _number(size(row.dense_bytes), row.dense_bytes),
                _number(size(row.palettized_bytes), row.palettized_bytes),
                _snr(row.snr_db),
                _number(
                    "" if row.output_error is None else percent(row.output_error), row.output_error
                ),
                _text(row.rule, kind="why"),
            ],
        }
        for at, row in enumerate(rows)
    ]


def _dense(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "at": None,
            "name": printable(item.name),
            "cells": [
                _text(shape(item.shape), math.prod(item.shape)),
                _number("dense", None),
                *[_text("")] * 2,
                *[_number(size(item.bytes), item.bytes)] * 2,
                *[_number("", None)] * 2,
                _text(item.reason, kind="why"),
            ],
        }
        for item in report.left
    ]


def _text(text: str, value: float | None = None, kind: str = "") -> dict[str, Any]:
    return {"text": printable(text), "value": value, "kind": kind}


def _number(text: str, value: float | None) -> dict[str, Any]:
    return {"text": text, "value": "" if value is None else f"{value:.10g}", "kind": "num"}


def _snr(snr_db: float) -> dict[str, Any]:
    if math.isfinite(snr_db):
        return _number(f"{snr_db:.1f}", snr_db)
    return _number("exact" if snr_db > 0 else "−∞", math.copysign(1e9, snr_db))


def _opened(row: TensorReport) -> dict[str, Any]:
    facts = [
        ("size", f"{size(row.dense_bytes)} to {size(row.palettized_bytes)}"),
        ("stored as", f"{row.stored_form}, tables of {row.lut_dtype}"),
        ("algorithm", row.algorithm),
        ("decided by", row.rule),
        ("seed", str(row.seed)),
        ("seconds", f"{row.seconds:.3f}"),
    ]
    if row.output_error is not None:
        facts.append(("error of the layer's outputs", percent(row.output_error)))
    if row.loss_share is not None:
        facts.append(("of the model's error", f"{percent(row.loss_share)} goes without it"))
    if row.objective_before is not None and row.objective_after is not None:
        change = f"{row.objective_before:.4g} to {row.objective_after:.4g}"
        facts.append(("objective of the algorithm", change))
    if row.zeros_lost:
        facts.append(("zeros lost", percent(row.zeros_lost)))
    told = [(name, printable(text)) for name, text in facts]
    view = None if row.view is None else row.view.to_dict()
    return {"elements": math.prod(row.shape), "view": view, "facts": told}


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    return printable(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def bits(row: TensorReport) -> str:
    """Return the bits of an index, and of how many values it stands for where that is not one."""
    return str(row.n_bits) + (f" ×{row.cluster_dim}" if row.cluster_dim > 1 else "")


def percent(share: float) -> str:
    """Return a share in percent, of three digits."""
    return f"{100 * share:.3g} %"
