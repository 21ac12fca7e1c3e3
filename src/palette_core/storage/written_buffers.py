"""Buffers that a model writes when it runs, such as caches: states of a run, and no weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

_NOTE = "_palette_core_written"


def note_written(model: nn.Module, names: Iterable[str]) -> None:
    """Note at their modules that buffers are written in runs; copies carry the note along.

    Args:
        model: the model.
        names: of buffers, fully qualified; those that it does not have are passed over.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        prefix, _, state = name.rpartition(".")
        if prefix in modules and state in modules[prefix]._buffers:
            own: dict[str, Any] = modules[prefix].__dict__
            own[_NOTE] = tuple(dict.fromkeys((*own.get(_NOTE, ()), state)))


def written_buffers(model: nn.Module) -> Iterator[str]:
    """Yield the names of buffers that `note_written` has noted."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for state in vars(module).get(_NOTE, ()):
            yield f"{prefix}.{state}" if prefix else state
