"""Reports as data frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from palette_core.engine.results import Report
from palette_core.errors import PaletteError


class MissingFramesError(PaletteError, ImportError):
    """pandas is not installed."""


def frame(report: Report) -> Any:
    """Return a ``pandas.DataFrame``, one row for each tensor, dense ones too.

    Raises:
        MissingFramesError: pandas is not installed.
    """
    return framed_rows(rows(report))


def framed_rows(records: Sequence[Mapping[str, Any]]) -> Any:
    """Return records as a ``pandas.DataFrame``.

    Raises:
        MissingFramesError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise MissingFramesError(
            "data frames need pandas: pip install 'palette-core[report]'"
        ) from None
    return pandas.DataFrame(list(records))


def rows(report: Report) -> list[dict[str, Any]]:
    """Return one record for each tensor, dense ones last, without distributions."""
    left_out = ("late_view", "vector_kmeans_config")
    found = [
        {
            "palettized": True,
            **{name: value for name, value in vars(row).items() if name not in left_out},
            "bits_per_weight": 8 * row.palettized_bytes / max(1, math.prod(row.shape)),
            "reason": None,
        }
        for row in report.tensors
    ]
    blank: dict[str, Any] = dict.fromkeys(found[0] if found else ())
    for item in report.left:
        told = {"name": item.name, "shape": item.shape, "reason": item.reason}
        sizes = {"dense_bytes": item.bytes, "palettized_bytes": item.bytes}
        found.append({**blank, "palettized": False, **told, **sizes})
    return found
