"""Print results: as tables for people, as JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from palette_core.config import KMeansPalettizerConfig
from palette_core.engine.results import Report
from palette_core.errors import printable
from palette_core.planning import Coverage, Plan, TensorPlan
from palette_core.plugins import PluginEntry
from palette_core.plugins.catalog import Catalog
from palette_core.reporting import advice
from palette_core.reporting.words import shape as shape  # noqa: PLC0414 - show.shape
from palette_core.reporting.words import size as size  # noqa: PLC0414
from palette_core.storage.forms.lookup import DEFAULT_FORM

# Piped output has no width of its own; wide enough that names are not folded.
_PIPED_WIDTH = 160
_WIDE = 100  # columns: all of a table is legible
_NAMES = 20
console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def print_json(value: Any) -> None:
    """Print plain values as JSON; nothing else goes to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


class _PlainTable(Table):
    """A table whose cells are text as it is: names have no markup, and steer no terminal.

    Attributes:
        shown: positions of the cells of a row that are shown; None shows all.
    """

    shown: list[int] | None = None

    def add_row(self, *cells: Any, **options: Any) -> None:
        kept = cells if self.shown is None else [cells[at] for at in self.shown]
        plain = [Text(printable(cell)) if isinstance(cell, str) else cell for cell in kept]
        super().add_row(*plain, **options)


def table(
    title: str, *columns: str, right: tuple[str, ...] = (), spare: tuple[str, ...] = ()
) -> Table:
    """Make a table of plain text.

    Args:
        title: shown above.
        columns: their titles.
        right: of numbers.
        spare: left out, and named below, where the terminal is narrow.
    """
    made = _PlainTable(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    made.padding = (0, 1, 0, 0)
    made.caption_justify = "left"
    is_narrow = console.width < _WIDE
    if is_narrow and spare:
        made.shown = [at for at, column in enumerate(columns) if column not in spare]
        made.caption = f"in {_WIDE} columns or more, and --json: {', '.join(spare)}"
    for at, column in enumerate(columns):
        if made.shown is None or at in made.shown:
            made.add_column(
                column,
                justify="right" if column in right else "left",
                overflow="fold",
                no_wrap=column in right,
                min_width=_NAMES if is_narrow and at == 0 else None,
            )
    return made


_SLOW = 1.0  # seconds


def plugins(catalog: Catalog, *, as_json: bool, timings: bool = False) -> None:
    """Show what is installed."""
    rows, broken = _installed(catalog), _quarantined(catalog)
    blocked = [{"item": b.item, "distribution": str(b.distribution)} for b in catalog.blocked]
    seconds = import_seconds(catalog)
    if as_json:
        printed: dict[str, Any] = {"plugins": rows, "quarantined": broken, "blocked": blocked}
        print_json(printed | ({"seconds": seconds} if timings else {}))
        return
    shown = table(
        "Plug-ins", "kind", "name", "summary", "distribution", "options",
        spare=("distribution", "options"),
    )  # fmt: skip
    for row in rows:
        options = ", ".join(f"{k}={v['default']}" for k, v in row["options"].items())
        shown.add_row(
            row["kind"],
            row["name"],
            row["summary"],
            f"{row['distribution']} {row['version']}",
            options,
        )
    console.print(shown)
    if broken:
        bad = table("Quarantined: installed but not usable", "distribution", "error")
        for item in broken:
            bad.add_row(f"{item['distribution']} {item['version']}", item["error"])
        console.print(bad)
    if blocked:
        left = table("Blocked: installed and left out", "distribution", "item")
        for each in blocked:
            left.add_row(each["distribution"], escape(each["item"]))
        console.print(left)
    if timings:
        times = table("Imports", "distribution", "seconds", "", right=("seconds",))
        for name, taken in seconds.items():
            slow = f"slow, over {_SLOW:g} s: import heavy modules inside the factories"
            times.add_row(name, f"{taken:.2f}", slow if taken > _SLOW else "")
        console.print(times)


def _installed(catalog: Catalog) -> list[dict[str, Any]]:
    return [
        {
            "kind": str(registry.kind),
            "name": item.entry.name,
            "summary": item.entry.summary,
            "distribution": item.distribution.name,
            "version": item.distribution.version,
            "options": _options(item.entry),
        }
        for registry in catalog.registries()
        for item in registry
    ]


def _quarantined(catalog: Catalog) -> list[dict[str, Any]]:
    return [
        {
            "distribution": q.distribution.name,
            "version": q.distribution.version,
            "entry_point": q.entry_point,
            "error": q.error,
        }
        for q in catalog.quarantined
    ]


def import_seconds(catalog: Catalog) -> dict[str, float]:
    """Return how long the entry points of each distribution took to import, slowest first."""
    items = {item.distribution for registry in catalog.registries() for item in registry}
    found: dict[str, float] = {}
    for dist in items | {q.distribution for q in catalog.quarantined}:
        found[str(dist)] = found.get(str(dist), 0.0) + dist.seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _options(entry: PluginEntry) -> dict[str, dict[str, Any]]:
    schema = entry.options.model_json_schema()
    required = schema.get("required", [])
    return {
        name: {
            "default": "required" if name in required else field.get("default"),
            "description": field.get("description", ""),
        }
        for name, field in schema.get("properties", {}).items()
        if name != "type"
    }


def config(value: KMeansPalettizerConfig, *, as_json: bool) -> None:
    """Show a config with all its defaults."""
    if as_json:
        print_json(value.to_dict())
    else:
        print(value.to_yaml(defaults=True), end="")


def plan(value: Plan, *, as_json: bool) -> None:
    """Show what would happen to every tensor, and why."""
    if as_json:
        print_json(
            {
                "tensors": [_plan_row(p) for p in value],
                "skipped": [asdict(s) for s in value.skipped],
                "dense": [asdict(d) for d in value.dense],
                "notes": list(value.notes),
                "coverage": value.coverage.to_dict(),
                "copies": [asdict(each) for each in value.copies],
                "left_out": list(value.left_out),
            }
        )
        return
    rows = [_plan_row(p) for p in value]
    form = form_column({form for row in rows for form in row["stored_forms"]})
    shown = table(
        f"{len(value)} tensors to palettize",
        "tensor", "shape", "op", "bits", *form, "granularity", "LUTs", "algorithm", "rule",
        right=("bits", "LUTs"),
        spare=("op", "LUTs", "algorithm"),
    )  # fmt: skip
    for row in rows:
        shown.add_row(
            " = ".join(row["names"]),
            shape(row["shape"]),
            row["op_type"] or "",
            str(row["n_bits"]) + (f" ×{row['cluster_dim']}" if row["cluster_dim"] > 1 else ""),
            *([" or ".join(row["stored_forms"])] if form else []),
            row["granularity"],
            str(row["luts"]),
            row["algorithm"],
            row["rule"],
        )
    console.print(shown)
    skipped(value.skipped)
    if value.dense:
        rest = table("Not asked for: stay dense", "tensor", "shape", "why")
        for dense in value.dense:
            rest.add_row(dense.name, shape(dense.shape), dense.reason)
        console.print(rest)
    for note in value.notes:
        console.print(f"[yellow]note:[/] {escape(printable(note))}")
    if said := advice.where_no_data(value):
        console.print(said, markup=False, highlight=False)
    coverage(value.coverage, advise=True)


def form_column(forms: Iterable[str]) -> list[str]:
    """Return the title of the column of stored forms, where any is not the default."""
    return ["form"] if {*forms} - {DEFAULT_FORM} else []


def _plan_row(item: TensorPlan) -> dict[str, Any]:
    return {
        "names": [owner.name for owner in item.owners],
        "shape": list(item.shape),
        "op_type": item.op_type,
        "n_bits": item.spec.n_bits,
        "cluster_dim": item.spec.cluster_dim,
        "granularity": item.granularity,
        "luts": item.layout.n_blocks,
        "algorithm": item.algorithm,
        "rule": item.rule,
        "stored_forms": list(item.spec.stored_forms),
        "spec": item.spec.model_dump(mode="json"),
    }


def skipped(items: Any) -> None:
    """Show what was asked for and stays dense."""
    if not items:
        return
    shown = table("Asked for, but stay dense", "tensor", "shape", "why", "rule")
    for item in items:
        shown.add_row(item.name, shape(item.shape), item.reason, item.rule)
    console.print(shown)


def report(value: Report) -> None:
    """Show what happened to each tensor."""
    aware = any(row.objective_before is not None for row in value.tensors)
    objective = ("objective from", "to") if aware else ()
    form = form_column(row.stored_form for row in value.tensors)
    shown = table(
        "Palettized weights",
        "tensor", "shape", "bits", *form, "granularity", "algorithm", "before", "after", "SNR dB",
        *objective, "seconds",
        right=("bits", "before", "after", "SNR dB", *objective, "seconds"),
        spare=("granularity", "algorithm", "before", *objective, "seconds"),
    )  # fmt: skip
    for row in value.tensors:
        shown.add_row(
            row.name,
            shape(row.shape),
            str(row.n_bits),
            *([row.stored_form] if form else []),
            row.granularity,
            row.algorithm,
            size(row.dense_bytes),
            size(row.palettized_bytes),
            "exact" if math.isinf(row.snr_db) else f"{row.snr_db:.1f}",
            *(map(_objective, (row.objective_before, row.objective_after)) if aware else ()),
            f"{row.seconds:.2f}",
        )
    console.print(shown)
    if aware:
        console.print(
            "objective: what the algorithm lowers, at its plain start and at the end; of gptq and "
            "lnq the squared error of a layer's outputs on the calibration batches. That takes "
            "from the SNR, which is of the weights alone.\n"
        )
    skipped(value.skipped)
    coverage(value.coverage)


def coverage(value: Coverage, *, advise: bool = False) -> None:
    """Show how much of a model is palettized, and where that is little, what reaches the rest."""
    if not value.elements:
        return
    console.print(value.sentence(), markup=False, highlight=False)
    if advise and value.is_low and value.config:
        console.print(f"\nto add to the config:\n\n{value.yaml}", markup=False, highlight=False)


def _objective(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def totals(rows: dict[str, Any]) -> None:
    """Show a handful of totals, one a line."""
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        console.print(f"[bold]{name:<{width}}[/]  {escape(printable(str(value)))}", highlight=False)
