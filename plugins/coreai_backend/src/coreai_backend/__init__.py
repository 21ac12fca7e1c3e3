"""Core AI as an export backend of palette_core.

The backend is found by its name, ``coreai``; nothing needs to be imported. For people who convert
by themselves, `register_lowerings` teaches a ``coreai_torch.TorchConverter`` what a palettized
weight is, and `read_weights` decodes the palettized weights of a saved file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreai_backend.lowering import register_lowerings as register_lowerings
    from coreai_backend.reader import StoredWeight as StoredWeight
    from coreai_backend.reader import read_weights as read_weights
    from coreai_backend.reader import stored_weights as stored_weights

_HOMES = {
    "register_lowerings": "lowering",
    "StoredWeight": "reader",
    "read_weights": "reader",
    "stored_weights": "reader",
}

__all__ = ["StoredWeight", "read_weights", "register_lowerings", "stored_weights"]


def __getattr__(name: str) -> Any:
    """Import what needs the converter when it is asked for: listing plug-ins must stay light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
