"""Names of what the process has imported already; nothing is imported to look one up."""

from __future__ import annotations

import sys
from typing import Any


def find_imported(key: str) -> Any:
    """Follow a dotted name from the longest imported module, running no ``__getattr__``.

    Returns:
        None where there is no such thing.
    """
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        value: Any = sys.modules.get(".".join(parts[:end]))
        for part in parts[end:]:
            value = vars(value).get(part) if hasattr(value, "__dict__") else None
        if value is not None:
            return value
    return None
