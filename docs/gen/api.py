"""Writes the entries of the pages in api/ from ``__all__`` of the public modules.

MkDocs runs this file as a hook; ``python docs/gen/api.py`` prints the same text. A page asks for
all names of a module, or for some of them; what an earlier page or module shows is linked to there.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parents[1] / "api"
# An object of several modules is shown on the first page that has it.
ORDER = (
    "palettizing",
    "configuration",
    "budget",
    "checkpoints",
    "programs",
    "plugins",
    "tensors",
    "storage",
    "testing",
)
MARKER = re.compile(r"<!-- (?:every name|names) of ([\w.]+)(?:: ([\w\s]+?))? -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs hook: put names of a module where a page asks for them."""
    if not MARKER.search(markdown):
        return markdown
    shown = places()
    return MARKER.sub(lambda found: section(found[1], asked_for(found), shown), markdown)


def asked_for(found: re.Match[str]) -> list[str]:
    """Return the names that a marker stands for."""
    return found[2].split() if found[2] else list(importlib.import_module(found[1]).__all__)


def places() -> dict[tuple[str, int], str]:
    """Return where each object is shown: the first place of the pages that names it."""
    shown: dict[tuple[str, int], str] = {}
    for page in ORDER:
        for found in MARKER.finditer((PAGES / f"{page}.md").read_text(encoding="utf8")):
            for name in asked_for(found):
                shown.setdefault(key(found[1], name), f"{found[1]}.{name}")
    return shown


def key(module: str, name: str) -> tuple[str, int]:
    """Return what tells an object from others: its name, and which it is."""
    return name, id(getattr(importlib.import_module(module), name))


def section(module: str, names: list[str], shown: dict[tuple[str, int], str]) -> str:
    """Return an entry for every name, and links to those shown elsewhere."""
    at = {f"{module}.{name}": shown[key(module, name)] for name in names}
    entries = [
        f"::: {own}\n    options:\n      heading_level: 3"
        for own, place in at.items()
        if place == own
    ]
    links = [f"[`{own.rpartition('.')[2]}`][{place}]" for own, place in at.items() if place != own]
    if links:
        entries.insert(0, f"Described elsewhere: {', '.join(links)}.")
    return "\n\n".join(entries)


if __name__ == "__main__":
    for name in ORDER:
        print(on_page_markdown((PAGES / f"{name}.md").read_text(encoding="utf8")))
