"""The table of architectures in the documentation."""

from __future__ import annotations

import os
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
COLUMNS = ("coreai", "coreml", "openvino")
_LONGEST = 240
_ROW = re.compile(r"^\| (?P<name>[^|]+?) \| (?P<cells>.*) \|$")


def is_as_written(name: str, backend: str, verdict: str) -> bool:
    """Return whether the page says this, or nothing; with PALETTE_WRITE_DOCS=1 it is made to."""
    lines = PAGE.read_text(encoding="utf8").splitlines()
    start = lines.index("<!-- table -->") + 4
    end = lines.index("<!-- end of table -->") - 1
    rows = {}
    for line in lines[start:end]:
        found = _ROW.match(line)
        assert found is not None, line
        rows[found["name"]] = found["cells"].split(" | ")
    # The first words have operation and module; further on, some count what a process has made.
    cell = (verdict if len(verdict) <= _LONGEST else f"{verdict[:_LONGEST]} …").replace("|", "\\|")
    at = COLUMNS.index(backend)
    if not os.environ.get("PALETTE_WRITE_DOCS"):
        return name in rows and rows[name][at] in (cell, "not tried")
    rows.setdefault(name, ["not tried"] * len(COLUMNS))[at] = cell
    written = [f"| {key} | {' | '.join(cells)} |" for key, cells in sorted(rows.items())]
    PAGE.write_text("\n".join([*lines[:start], *written, *lines[end:], ""]), encoding="utf8")
    return True
