"""Comparisons of runs on the console and in files, whose suffix picks the format."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from palette_core._common.files import atomic_path, check_place
from palette_core.errors import PaletteError
from palette_core.reporting import console as show
from palette_core.reporting.html.comparisons import comparison_page
from palette_core.reporting.html.pages import percent, write_page
from palette_core.reporting.run_comparison import RunComparison

_SUFFIXES = (".html", ".json", ".csv")
_MOST_LINES, _MOST_COLUMNS = 40, 4


class ComparisonFileError(PaletteError, ValueError):
    """A comparison cannot be written under a name."""


def check_comparison_file(path: Path) -> None:
    """Refuse, before any work, a file that no comparison can be written into.

    Raises:
        ComparisonFileError: its suffix is none of the three.
        OSError: its folder is missing or cannot be written to, or it is a folder.
    """
    if path.suffix not in _SUFFIXES:
        raise ComparisonFileError(
            f"cannot write a comparison into {path.name!r}; use one of {', '.join(_SUFFIXES)}"
        )
    check_place(path, is_file=True)


def write_comparison(found: RunComparison, path: Path) -> None:
    """Write a comparison, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    if path.suffix == ".html":
        write_page(comparison_page(found, path.stem), path)
    elif path.suffix == ".json":
        with atomic_path(path) as fresh:
            fresh.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    else:
        write_csv(rows_of(found), path)


def rows_of(found: RunComparison) -> list[dict[str, Any]]:
    """Return a record for each run, scores beside the other figures."""
    rows = []
    for row in found.rows:
        plain = {name: value for name, value in vars(row).items() if name != "scores"}
        scores = {name: row.scores.get(name) for name in found.scores}
        rows.append(
            {**{n if n not in plain else f"score {n}": v for n, v in scores.items()}, **plain}
        )
    return rows


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """Write records with the same fields as CSV, whole or not at all."""
    with atomic_path(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def show_comparison(found: RunComparison) -> None:
    """Print a comparison: runs, and the first of the weights that differ."""
    numbers = ("bits per weight", "size", *found.scores, "output error", "weight error")
    shown = show.table(
        f"{len(found.rows)} runs by {found.judge}, {'less' if found.minimized else 'more'} is "
        "better",
        "run", *numbers, "",
        right=numbers,
        spare=("size", "weight error"),
    )  # fmt: skip
    for row in found.rows:
        shown.add_row(
            row.name,
            f"{row.bits_per_weight:.3f}",
            "" if row.bytes is None else show.size(row.bytes),
            *(f"{row.scores[n]:.5g}" if n in row.scores else "" for n in found.scores),
            "" if row.output_error is None else percent(row.output_error),
            percent(row.weight_error),
            "front" if row.on_front else "",
        )
    show.console.print(shown)
    if not found.differences:
        show.console.print("all runs treat every weight alike")
        return
    names = [row.name for row in found.rows]
    if len(names) > _MOST_COLUMNS:
        show.console.print(
            f"{len(found.differences)} weights differ, which --json and --output tell",
            highlight=False,
        )
        return
    apart = show.table("Weights that differ", "tensor", *names)
    for item in found.differences[:_MOST_LINES]:
        apart.add_row(item.name, *(spec or "not there" for spec in item.specs))
    show.console.print(apart)
    rest = len(found.differences) - _MOST_LINES
    if rest > 0:
        show.console.print(f"and {rest} more, which --json and --output tell", highlight=False)
