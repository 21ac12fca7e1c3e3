"""Messages about what is wrong with a config: one line for each problem, naming its place."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from palette_core.errors import did_you_mean, printable, shortened

CONFIG_KEY = "kmeans_palettization_config"
MINIMAL = f"a minimal config is '{CONFIG_KEY}: {{}}'"
_LENGTH = 1000  # characters of one message
MOST = 20  # problems that are told one by one

Path = tuple[str | int, ...]
Locate = Callable[[Path], str]
"""Turns a path into the file and line where it stands, as in ``"config.yaml:7: "``."""

# Problems whose message is our own and holds what matters of the value.
_WITHOUT_VALUE = frozenset({"missing", "unknown_field", "foreign", "value_error"})


def nowhere(path: Path) -> str:
    """Locate nothing: for configs that come from no file."""
    del path
    return ""


def dotted(path: Path) -> str:
    """Return ``global_config.op_state_spec["layer.0"].n_bits`` for its parts."""
    text = ""
    for part in path:
        if isinstance(part, str) and re.fullmatch(r"[\w*-]+", part):
            text += f".{shortened(part)}"
        else:
            text += f"[{shortened(json.dumps(part, ensure_ascii=False))}]"
    return text.removeprefix(".")


def line(path: Path, message: str, locate: Locate = nowhere) -> str:
    """Return one problem as one line."""
    where = f"{dotted(path)}: " if path else ""
    return printable(f"{locate(path)}{where}{shortened(message, _LENGTH)}").replace("\n", "\\n")


def lines(error: ValidationError, root: Path, locate: Locate = nowhere) -> Iterator[str]:
    """Yield a line for each problem of a model that stands at ``root``, up to `MOST`."""
    for problem in error.errors(include_url=False)[:MOST]:
        # pydantic marks problems of keys, which are told apart by their messages already
        path = tuple(part for part in problem["loc"] if part != "[key]")
        yield line((*root, *path), _message(dict(problem)), locate)
    if error.error_count() > MOST:
        yield line(root, f"{error.error_count() - MOST:,} more problems", locate)


def _message(problem: dict[str, Any]) -> str:
    message: str = problem["msg"].removeprefix("Value error, ")
    kind, value = problem["type"], problem["input"]
    context = problem.get("ctx", {})
    if kind == "model_type":
        message = f"Input should be a mapping of the fields of {context['class_name']}"
    if kind == "dict_type":
        message = "Input should be a mapping"
    if kind not in _WITHOUT_VALUE:
        message += f", got {_shown(value)}"
    if kind in ("enum", "literal_error"):
        message += did_you_mean(value, re.findall(r"'([^']+)'", str(context["expected"])))
    return message


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a value of type {type(value).__name__} that is too large to print"
