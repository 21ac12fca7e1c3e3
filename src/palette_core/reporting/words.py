"""Numbers and shapes in words."""

from __future__ import annotations

from typing import Any


def size(count: int) -> str:
    """Return a number of bytes in words."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.4g} {unit}"
        value /= 1024
    raise AssertionError


def shape(sizes: Any) -> str:
    """Return the sizes of a shape in words."""
    return "×".join(map(str, sizes))
