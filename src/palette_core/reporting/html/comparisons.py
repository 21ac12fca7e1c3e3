"""Page of several runs: bits against what they are judged by, a table, weights that differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palette_core.errors import printable
from palette_core.reporting.html.pages import percent
from palette_core.reporting.html.templates import render
from palette_core.reporting.run_comparison import OUTPUT_ERROR, RunComparison, RunRow, pareto_front
from palette_core.reporting.words import size

_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 546.0, 12.0, 296.0
_TICKS = 5
_ROOM = 22.0, 15.0  # pixels that a number takes
_DECADES = 1.2  # from which on an axis is logarithmic


@dataclass(frozen=True)
class _Axis:
    """Scale of an axis, from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, *, may_log: bool) -> _Axis:
        low, high = min(values), max(values)
        log = may_log and low > 0 and math.log10(high / low) > _DECADES
        if log:
            return cls(low / 1.2, high * 1.2, start, end, log=True)
        margin = 0.07 * (high - low) or 0.07 * abs(high) or 1.0
        return cls(low - margin, high + margin, start, end)

    def at(self, value: float) -> float:
        ends = self.low, self.high
        if self.log:
            value, ends = math.log10(value), (math.log10(self.low), math.log10(self.high))
        share = (value - ends[0]) / (ends[1] - ends[0])
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            some = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
            return [value for value in some if self.low <= value <= self.high]
        unit = 10.0 ** math.floor(math.log10((self.high - self.low) / _TICKS))
        wanted = (self.high - self.low) / _TICKS
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= wanted)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [at * step for at in range(first, last + 1)]


def comparison_page(found: RunComparison, title: str) -> str:
    """Return the page of a comparison."""
    judges = [found.judge]
    if found.judge != OUTPUT_ERROR and all(row.output_error is not None for row in found.rows):
        judges.append(OUTPUT_ERROR)
    return render(
        "comparison.html.j2",
        title=printable(title),
        found=found,
        front=[row for row in found.rows if row.on_front],
        plots=[_plot(found, judge) for judge in judges],
        printable=printable,
        percent=percent,
        size=size,
    )


def _plot(found: RunComparison, judge: str) -> dict[str, Any]:
    values = [_value(row, judge) for row in found.rows]
    is_error = judge != found.judge or found.minimized
    across = _Axis.of([row.bits_per_weight for row in found.rows], _LEFT, _RIGHT, may_log=False)
    up = _Axis.of(values, _BOTTOM, _TOP, may_log=is_error)
    sign = 1 if is_error else -1
    best = pareto_front(
        [(row.bits_per_weight, sign * v) for row, v in zip(found.rows, values, strict=True)]
    )
    points: list[dict[str, Any]] = [
        {
            "x": across.at(row.bits_per_weight),
            "y": up.at(value),
            "number": number,
            "on_front": best[number - 1],
            "told": printable(f"{row.name}: {row.bits_per_weight:.3f} bits, {value:.5g}"),
        }
        for number, (row, value) in enumerate(zip(found.rows, values, strict=True), 1)
    ]
    _label(points)
    line = [f"{p['x']},{p['y']}" for p in points if p["on_front"]]
    return {
        "name": printable(judge),
        "log": up.log,
        "points": points,
        "front": " ".join(line) if len(line) > 1 else "",
        "columns": [(across.at(value), f"{value:.4g}") for value in across.ticks()],
        "rows": [(up.at(value), f"{value:.3g}") for value in up.ticks()],
    }


def _label(points: Sequence[dict[str, Any]]) -> None:
    """Mark the points beside which there is room for a number, those of the front first."""
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda each: not each["on_front"]):
        x, y = point["x"], point["y"]
        point["labelled"] = all(abs(x - a) > _ROOM[0] or abs(y - b) > _ROOM[1] for a, b in taken)
        if point["labelled"]:
            taken.append((x, y))


def _value(row: RunRow, judge: str) -> float:
    value = row.value(judge)
    assert value is not None
    return value
