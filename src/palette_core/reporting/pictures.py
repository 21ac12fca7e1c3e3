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

    Raises:
        MissingPlotError: matplotlib is not installed.
        PictureError: the suffix is no format that matplotlib writes.
    """
    path = check_picture(path)
    from matplotlib.figure import Figure

    names = [tensor.name for tensor in report.tensors]
    rows = range(len(names))
    figure = Figure(figsize=(11, 1.5 + 0.22 * max(1, len(names))), layout="constrained")
    sizes, noise = figure.subplots(1, 2, sharey=True)
    sizes.barh(
        rows, [t.dense_bytes / 2**20 for t in report.tensors], color="#c9d3df", label="dense"
    )
    sizes.barh(
        rows, [t.palettized_bytes / 2**20 for t in report.tensors], color="#2a6f97",
        label="palettized",
    )  # fmt: skip
    sizes.set_xlabel("MiB")
    sizes.set_yticks(rows, names, fontsize=7)
    sizes.invert_yaxis()
    sizes.legend(loc="lower right")
    noise.barh(
        rows, [t.snr_db if math.isfinite(t.snr_db) else 0 for t in report.tensors], color="#e09f3e"
    )
    noise.set_xlabel("signal-to-noise, dB")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix("."))
    return path


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
