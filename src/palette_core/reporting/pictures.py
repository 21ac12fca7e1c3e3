"""Pictures: sizes and noise by layer, predicted loss against size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from palette_core._common.files import atomic_path, check_place
from palette_core.allocation import Allocation, Compared
from palette_core.engine.results import Report
from palette_core.errors import PaletteError


class MissingPlotError(PaletteError, ImportError):
    """matplotlib is not installed."""


class PictureError(PaletteError, ValueError):
    """The name of a picture does not end in a format that can be drawn."""


def check_picture(path: str | Path) -> Path:
    """Return ``path`` when a picture can be drawn into it.

    Raises:
        MissingPlotError: matplotlib is not installed.
        PictureError: the suffix is no format that matplotlib writes, or a folder stands there.
        OSError: the folder of ``path`` does not exist, or cannot be written to.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPlotError(
            "pictures need matplotlib: pip install 'palette-core[plot]'"
        ) from None
    path = Path(path)
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise PictureError(f"cannot draw {path.name!r}; use one of .{', .'.join(sorted(known))}")
    if path.is_dir():
        raise PictureError(f"cannot draw {path}: it is a folder")
    check_place(path, is_file=True)
    return path


def plot_report(report: Report, path: str | Path) -> Path:
    """Draw ``report`` into ``path``; the suffix chooses the format (.png, .svg, .pdf).

    Tensors that stay dense are drawn too, for what is written not to look smaller than it is.

    Raises:
        MissingPlotError: matplotlib is not installed.
        PictureError: the suffix is no format that matplotlib writes.
    """
    path = check_picture(path)
    from matplotlib.figure import Figure

    rows = [(t.name, t.dense_bytes, t.palettized_bytes, _finite(t.snr_db)) for t in report.tensors]
    shown, rest = _largest_dense(report)
    rows += [(f"{name} (dense)", size, size, 0.0) for name, size in shown]
    if rest:
        rows.append(("smaller ones (dense)", rest, rest, 0.0))
    names, before, after, noise = zip(*rows, strict=True) if rows else ((), (), (), ())
    at = range(len(rows))
    figure = Figure(figsize=(11, 1.9 + 0.22 * max(1, len(rows))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(at, [size / 2**20 for size in before], color="#c9d3df", label="before")
    left.barh(
        at, [size / 2**20 for size in after], label="now",
        color=["#2a6f97"] * len(report.tensors) + ["#8d99a6"] * (len(rows) - len(report.tensors)),
    )  # fmt: skip
    left.set_xlabel("MiB")
    left.set_yticks(at, names, fontsize=7)
    left.invert_yaxis()
    left.legend(loc="lower right")
    right.barh(at, noise, color="#e09f3e")
    right.set_xlabel("signal-to-noise, dB")
    whole = sum(before)
    if whole:
        figure.suptitle(
            f"{whole / 2**20:.4g} MiB to {sum(after) / 2**20:.4g} MiB, tensors that stay dense "
            f"included ({100 * sum(size for _, size in shown) / whole + 100 * rest / whole:.0f} %)",
            fontsize=10,
        )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix("."))
    return path


_WORTH_A_BAR = 0.005  # of all that stays dense


def _largest_dense(report: Report) -> tuple[list[tuple[str, int]], int]:
    """Return the largest tensors that stay dense, and the bytes of all others."""
    items = report.left
    least = _WORTH_A_BAR * sum(item.bytes for item in items)
    return (
        [(item.name, item.bytes) for item in items if item.bytes > least],
        sum(item.bytes for item in items if item.bytes <= least),
    )


def _finite(ratio: float) -> float:
    return ratio if math.isfinite(ratio) else 0.0


def plot_curve(allocation: Allocation, path: str | Path, compared: Sequence[Compared] = ()) -> Path:
    """Draw predicted loss against bits per weight, the chosen point marked.

    What was measured has its own axis, on the right: its unit is another.

    Raises:
        MissingPlotError: matplotlib is not installed.
        PictureError: the suffix is no format that matplotlib writes.
    """
    path = check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    bits, losses = zip(*allocation.curve, strict=True)
    axes.plot(bits, losses, marker=".", color="#2a6f97", label="optimal choices")
    axes.plot(
        allocation.bits_per_weight, allocation.predicted_loss, "o", color="#e09f3e", label="chosen"
    )
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.set_xlabel(f"bits per weight ({allocation.over})")
    axes.set_ylabel("predicted loss")
    axes.grid(alpha=0.3)
    handles = list(axes.get_lines())
    if compared:
        right = axes.twinx()
        measured = [row.measured_loss for row in compared]
        handles += right.plot(
            [row.bits_per_weight for row in compared], measured, "s--", color="#9e2a2b",
            label="measured (right)",
        )  # fmt: skip
        if min(measured) > 0 and max(measured) < math.inf:
            right.set_yscale("log")
        right.set_ylabel("measured loss, less that of the dense model")
    axes.legend(handles=handles)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix("."))
    return path
