"""Writes the entries of api.md from ``__all__`` of the public modules.

MkDocs runs this file as a hook; ``python docs/gen/api.py`` prints the same text. A name that an
earlier module of the page shows is linked to there.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARKER = re.compile(r"<!-- every name of ([\w.]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs hook: put the names of a module where a page asks for them."""
    if not MARKER.search(markdown):
        return markdown
    shown = places(MARKER.findall(markdown))
    return MARKER.sub(lambda found: section(found[1], shown), markdown)


def places(modules: list[str]) -> dict[tuple[str, int], str]:
    """Return where each object is shown: the first module of the page that names it."""
    shown: dict[tuple[str, int], str] = {}
    for module in modules:
        for name, value in names(module):
            shown.setdefault((name, id(value)), f"{module}.{name}")
    return shown


def names(module: str) -> Iterator[tuple[str, object]]:
    """Yield the public names of a module, and what they stand for."""
    loaded = importlib.import_module(module)
    for name in loaded.__all__:
        yield name, getattr(loaded, name)


def section(module: str, shown: dict[tuple[str, int], str]) -> str:
    """Return an entry for every name of a module, and links to those shown elsewhere."""
    at = {f"{module}.{name}": shown[name, id(value)] for name, value in names(module)}
    entries = [
        f"::: {own}\n    options:\n      heading_level: 3"
        for own, place in at.items()
        if place == own
    ]
    links = [f"[`{own.rpartition('.')[2]}`][{place}]" for own, place in at.items() if place != own]
    if links:
        entries.insert(0, f"Described elsewhere on this page: {', '.join(links)}.")
    return "\n\n".join(entries)


if __name__ == "__main__":
    page = Path(__file__).parents[1] / "api.md"
    print(on_page_markdown(page.read_text(encoding="utf8")))
