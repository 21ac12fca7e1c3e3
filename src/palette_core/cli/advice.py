"""Advice on plug-ins that are known and not installed, from a file of data."""

from __future__ import annotations

import json
from importlib.resources import files


def known_plugins() -> dict[str, dict[str, str]]:
    """Return backends by the suffixes that they write, and how distributions are installed."""
    text = files("palette_core.cli").joinpath("known_plugins.json").read_text()
    known: dict[str, dict[str, str]] = json.loads(text)
    return known


def how_to_install(distribution: str | None) -> str:
    """Return the end of a message, empty for a distribution that nothing is known of."""
    command = known_plugins()["from a checkout"].get(distribution or "")
    return f"; from a checkout of palette_core: {command}" if command else ""
