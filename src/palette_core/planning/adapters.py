"""Low-rank adapters beside a model's weights, which stay dense unless they are asked for by name.

An adapter is a small correction that was trained apart: it has few weights, errors in them count
more than elsewhere, and it is usually merged into the weight beside it, or exchanged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from palette_core.model.graph import TensorRecord

_METHODS = "lora|loha|hada|lokr|vera|dora"  # what their parts are called, by every library
_PART = re.compile(rf"(?:^|[._])(?:{_METHODS})(?:[._]|$)", re.IGNORECASE)
_WORD = re.compile(_METHODS, re.IGNORECASE)

ADAPTER = (
    "it is part of a low-rank adapter, which is palettized only when an entry names it: a key of "
    "module_name_configs such as '.*lora.*'"
)


def is_adapter(tensor: TensorRecord) -> bool:
    """Return whether a weight is part of an adapter, by a name of its own or of a module of it."""
    return any(_PART.search(owner.name) for owner in tensor.owners)


def names_adapters(rule: str) -> bool:
    """Return whether a rule, as a path into the config, names adapters."""
    return _WORD.search(rule) is not None


def adapter_notes(names: Sequence[str]) -> list[str]:
    """Return a sentence about the adapter weights of those names, if there are any."""
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        f"weights of adapters stay dense: {names[0]}{more}; merge them into the weights beside "
        "them before palettizing, or name them in module_name_configs, such as '.*lora.*'"
    ]
