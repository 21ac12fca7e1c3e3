"""Print the parts of a model in files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from palette_core._common.files import size_on_disk
from palette_core.errors import printable
from palette_core.reporting import console as show


def contents(folder: Path, told: Mapping[str, Any], *, as_json: bool) -> None:
    """Show each part with its inputs and where they come from, and weights stored twice."""
    sizes = {
        part["name"]: sum(size_on_disk(folder / file) for file in part["files"])
        for part in told["parts"]
    }
    if as_json:
        show.print_json({**told, "file_bytes": sizes})
        return
    shown = show.table(
        escape(printable(str(folder))), "part", "input", "shape", "from", "size", right=("size",)
    )
    for part in told["parts"]:
        size = show.size(sizes[part["name"]])
        inputs = part["inputs"] or [{"name": "as given", "shape": [], "from": None}]
        for at, each in enumerate(inputs):
            source = "" if part["inputs"] is None else _source(each["from"])
            name, size = ("", "") if at else (part["name"], size)
            row = (name, each["name"], show.shape(each["shape"]), source, size)
            shown.add_row(*map(escape, map(printable, row)))
    show.console.print(shown)
    copies = [
        f"{copy['weight']} in {', '.join(copy['parts'])}, {show.size(copy['bytes'])} each"
        for copy in told["copies"]
    ]
    shared = {"stored several times": "; ".join(copies)} if copies else {}
    left_out = {"in no part": ", ".join(told["left_out"])} if told["left_out"] else {}
    show.totals({"backend": told["backend"], **shared, **left_out})


def _source(given: Mapping[str, Any] | None) -> str:
    if given is None:
        return "the model itself, no file"
    if "model" in given:
        return f"{given['model']} of the model"
    return f"{given['part']}, output {given['output']}"
