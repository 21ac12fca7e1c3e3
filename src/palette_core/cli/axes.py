"""Axes whose length may vary, as the command line names them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch.export import Dim

from palette_core.cli.factories import FactoryError, Loaded
from palette_core.errors import did_you_mean
from palette_core.model import call_arguments


def read_dynamic(texts: Sequence[str], flag: str = "--dynamic") -> dict[str, dict[int, Any]]:
    """Read ``INPUT:AXIS`` and ``INPUT:AXIS=MIN..MAX``: axes that may vary, by name of the input.

    Raises:
        FactoryError: a text is neither.
    """
    found: dict[str, dict[int, Any]] = {}
    for text in texts:
        match = re.fullmatch(r"\s*(\w+)\s*:\s*(\d+)\s*(?:=\s*(\d+)\s*\.\.\s*(\d+)\s*)?", text)
        if match is None or (match[3] and int(match[3]) > int(match[4])):
            raise FactoryError(
                f"cannot read {flag} {text!r}; write INPUT:AXIS or INPUT:AXIS=MIN..MAX, for "
                "example input_ids:1=1..128"
            )
        # AUTO finds out which axes of several inputs must be equal.
        length = Dim.AUTO if match[3] is None else Dim.AUTO(min=int(match[3]), max=int(match[4]))
        found.setdefault(match[1], {})[int(match[2])] = length
    return found


def dynamic_shapes(
    dynamic: Mapping[str, Mapping[int, Any]], loaded: Loaded, flag: str = "--dynamic"
) -> dict[str, dict[int, Any] | None] | None:
    """Return axes that may vary as torch.export takes them: an entry for every input, or None.

    Raises:
        FactoryError: ``dynamic`` names an input that the model does not have.
    """
    if not dynamic:
        return None
    args, kwargs = call_arguments(loaded.example_inputs)
    bound = inspect.signature(loaded.model.forward).bind(*args, **kwargs)
    for name in dynamic:
        if name not in bound.arguments:
            raise FactoryError(
                f"{flag} {name}: the model has no such input"
                f"{did_you_mean(name, bound.arguments)} (inputs: {', '.join(bound.arguments)})"
            )
    return {name: dict(dynamic[name]) if name in dynamic else None for name in bound.arguments}
