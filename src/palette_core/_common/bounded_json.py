"""JSON of files that anybody may have written, read in bounds, all that is wrong a ValueError."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_CHARACTERS = 64_000_000
MAX_DEPTH = 64
MAX_DIGITS = 20  # of one integer, which holds all of 64 bits

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def read_json(text: str | bytes) -> Any:
    """Return the value that a JSON text holds.

    Raises:
        ValueError: it is no JSON, larger or nested deeper than files of ours are, has a key twice,
            or a number that is no finite one of 64 bits.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters, more than {MAX_CHARACTERS:,}")
    if isinstance(text, bytes):
        text = text.decode()
    _check_depth(text)
    return json.loads(
        text,
        object_pairs_hook=_object,
        parse_int=_integer,
        parse_float=_float,
        parse_constant=_constant,
    )


def _check_depth(text: str) -> None:
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group(), 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice[:100]!r} is there twice")
    return made


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:100]} is too large")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
