"""Configs without what goes without saying, as people would write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

_ALWAYS = ("type", "n_bits")  # the gist of a granularity and of a spec, default or not
_NOTHING = {"op_state_spec": {"*": None}}


def essentials(value: Any, dumped: Any) -> Any:
    """Return plain data that reads as a config does, without fields at their defaults.

    Args:
        value: a config, or what one holds.
        dumped: the same as plain data, with everything.
    """
    if isinstance(value, Mapping):
        return {key: essentials(item, dumped[key]) for key, item in value.items()}
    if not isinstance(value, BaseModel):
        return dumped
    said = {
        name: essentials(getattr(value, name), dumped[name])
        for name, field in type(value).model_fields.items()
        if name in _ALWAYS or getattr(value, name) != field.get_default(call_default_factory=True)
    }
    if said == _NOTHING:
        return None
    return said["type"] if said.keys() == {"type"} else said
