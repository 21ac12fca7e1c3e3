"""OpenVINO as an export backend of palette_core.

The backend is found by its name, ``openvino``; nothing needs to be imported. `read_weights` decodes
the palettized weights of a saved file, without OpenVINO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openvino_backend.reader import read_weights as read_weights

__all__ = ["read_weights"]


def __getattr__(name: str) -> Any:
    """Import what needs numpy when it is asked for: listing plug-ins must stay light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from openvino_backend import reader

    return getattr(reader, name)
