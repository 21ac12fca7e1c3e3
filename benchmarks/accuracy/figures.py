"""Figures of many cases: kept in a file, said in a line, one table, one picture."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

Row = dict[str, Any]


def read(path: Path) -> dict[str, Row]:
    return json.loads(path.read_text()) if path.exists() else {}


def kept(path: Path, key: str, measure: Callable[[], Row | None]) -> Row | None:
    """Return a row of a results file, measured where it is missing; None where it cannot be."""
    known = read(path)
    if key in known:
        return known[key]
    row = measure()
    if row is not None:
        results = {**read(path), key: row}  # another process may have written meanwhile
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(results, indent=1))
        temporary.replace(path)
    return row


def where(group: int) -> str:
    return f"groups of {group}" if group else "per tensor"


def said(row: Row) -> str:
    """Return a case as a line."""
    return (
        f"{row['model']:8s} {row['bits']:2d} bits {where(row['group']):13s} {row['method']:36s} "
        f"{row['bpw']:6.3f} bpw {row['measure']:13s} {row['value']:10.4f} {row['seconds']:7.1f} s"
        f"  seed {row['seed']}"
        + (f"  divergence {row['divergence']:.4f}" if "divergence" in row else "")
    )


# --- seeds together -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A measure over its seeds."""

    bpw: float
    values: tuple[float, ...]
    seconds: float

    @property
    def value(self) -> float:
        return mean(self.values)

    def said(self, seeds: int) -> str:
        """Return the mean and its range, and of how many seeds it is where ``seeds`` are usual."""
        least, most = _number(min(self.values)), _number(max(self.values))
        text = _number(self.value) + (f" ({least}–{most})" if least != most else "")
        own = len(self.values)
        return text if own == seeds else f"{text}, {own} seed{'s' * (own > 1)}"


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def cells(rows: list[Row]) -> dict[tuple[str, int, str, int], Cell]:
    """Return cells by model, group, method and bits, in the rows' order."""
    together: dict[tuple[str, int, str, int], list[Row]] = {}
    for row in rows:
        key = (row["model"], row["group"], row["method"], row["bits"])
        together.setdefault(key, []).append(row)
    return {
        key: Cell(
            mean(row["bpw"] for row in own),
            tuple(row["value"] for row in own),
            mean(row["seconds"] for row in own),
        )
        for key, own in together.items()
    }


# --- a table ------------------------------------------------------------------------------------


def table(rows: list[Row], markdown: Path | None = None) -> None:
    """Print one table: blocks of models and granularities, a line per method, a column per bits.

    A cell is the mean over seeds, with the least and the largest, and says when it is of fewer
    seeds than others of its model. The best of several cells with the most seeds is marked.
    """
    from rich.console import Console
    from rich.table import Table

    head, blocks = _blocks(rows)
    if not blocks:
        return
    title = "mean over seeds (least to largest); * is the best of those with the most seeds"
    drawn = Table(*head, title=title)
    for block in blocks:
        for line in block:
            drawn.add_row(*line, end_section=line is block[-1])
    Console(width=None if os.isatty(1) else 160).print(drawn)
    if markdown is not None:
        bold = [[_bold(text) for text in line] for block in blocks for line in block]
        lines = [head, ["---"] * len(head), *bold]
        markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


def _bold(text: str) -> str:
    return f"**{text.removesuffix(' *')}**" if text.endswith(" *") else text


def _blocks(rows: list[Row]) -> tuple[list[str], list[list[list[str]]]]:
    found = cells(rows)
    bits = sorted({row["bits"] for row in rows if row["method"] != "dense"}, reverse=True)
    head = ["model, measure", "granularity", "method", *(f"{b} bits" for b in bits), "seconds"]
    blocks = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        seeds = max(len(cell.values) for key, cell in found.items() if key[0] == model)
        dense = found.get((model, 0, "dense", 32))
        name = f"{model}, {own[0]['measure']}" + (f" (dense {dense.said(seeds)})" if dense else "")
        for group in dict.fromkeys(row["group"] for row in own if row["method"] != "dense"):
            inside = {
                (key[2], key[3]): cell for key, cell in found.items() if key[:2] == (model, group)
            }
            lower = own[0]["lower_is_better"]
            blocks.append([_sizes(name, group, bits, inside), *_lines(bits, inside, lower, seeds)])
    return head, blocks


Inside = dict[tuple[str, int], Cell]


def _methods(inside: Inside) -> list[str]:
    return [m for m in dict.fromkeys(method for method, _ in inside) if m != "dense"]


def _sizes(name: str, group: int, bits: list[int], inside: Inside) -> list[str]:
    most = [
        max((inside[m, width].bpw for m in _methods(inside) if (m, width) in inside), default=None)
        for width in bits
    ]
    said = ["" if bpw is None else f"{bpw:.3f}" for bpw in most]
    return [name, where(group), "bits per weight, at most", *said, ""]


def _lines(bits: list[int], inside: Inside, lower: bool, seeds: int) -> list[list[str]]:
    methods = _methods(inside)
    best = {}
    for width in bits:
        column = [inside[m, width] for m in methods if (m, width) in inside]
        most = max((len(cell.values) for cell in column), default=0)
        rivals = [cell.value for cell in column if len(cell.values) == most]
        best[width] = (min if lower else max)(rivals) if len(rivals) > 1 else None
    lines = []
    for method in methods:
        own = [inside.get((method, width)) for width in bits]
        shown = [
            "" if cell is None else cell.said(seeds) + " *" * (cell.value == best[width])
            for cell, width in zip(own, bits, strict=True)
        ]
        seconds = [cell.seconds for cell in own if cell is not None]
        lines.append(["", "", method, *shown, f"{mean(seconds):.0f}"])
    return lines


# --- a picture ----------------------------------------------------------------------------------


_MARKS = "osD^vP*Xhd"


def plot(rows: list[Row], path: Path) -> None:
    """Draw measure against bits of an index: a row per model, a column per granularity.

    Two columns at most, of the granularities that most models have: the picture is to be read in a
    page that is 690 pixels wide.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = cells(rows)
    models = list(dict.fromkeys(row["model"] for row in rows))
    have = Counter(group for _, group in {(r["model"], r["group"]) for r in rows if r["bits"] < 32})
    groups = [group for group, _ in have.most_common(2)]
    methods = [m for m in dict.fromkeys(r["method"] for r in rows) if m != "dense"]
    plt.rcParams.update({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(
        len(models), len(groups), figsize=(7.2, 2.6 * len(models) + 1.1), squeeze=False,
        sharey="row", layout="constrained",
    )  # fmt: skip
    for line, model in zip(panels, models, strict=True):
        about = next(row for row in rows if row["model"] == model)
        for panel, group in zip(line, groups, strict=True):
            for at, method in enumerate(methods):
                cases = [(k[3], c) for k, c in found.items() if k[:3] == (model, group, method)]
                _draw(panel, method, at, len(methods), sorted(cases, key=lambda case: case[0]))
            if dense := found.get((model, 0, "dense", 32)):
                panel.axhline(dense.value, color="black", linestyle=":", label="dense")
            panel.set(
                title=f"{model}, {where(group)}",
                xticks=sorted({r["bits"] for r in rows if r["bits"] < 32}),
                yscale="log" if about["lower_is_better"] else "linear",
            )
            panel.grid(axis="y", alpha=0.3)
        line[0].set_ylabel(about["measure"])
    for panel in panels[-1]:
        panel.set_xlabel("bits of an index")
    # One legend for all panels, where it hides nothing.
    shown = [panel.get_legend_handles_labels() for line in panels for panel in line]
    lines = {
        name: drawn for drawns, names in shown for drawn, name in zip(drawns, names, strict=True)
    }
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def _draw(panel: Any, method: str, at: int, of: int, cases: list[tuple[int, Cell]]) -> None:
    if not cases:
        return
    points = [cell for _, cell in cases]
    aside = 0.03 * (at - (of - 1) / 2)  # so that no method hides another
    panel.errorbar(
        [bits + aside for bits, _ in cases],
        [cell.value for cell in points],
        yerr=(
            [cell.value - min(cell.values) for cell in points],
            [max(cell.values) - cell.value for cell in points],
        ),
        marker=_MARKS[at % len(_MARKS)],
        markersize=4.5,
        linewidth=1.3,
        capsize=2,
        color=f"C{at % 10}",
        label=method,
    )
