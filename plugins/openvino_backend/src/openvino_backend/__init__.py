"""OpenVINO as an export backend of palette_core.

The backend is found by its name, ``openvino``; nothing needs to be imported. `read_weights` decodes
the palettized weights of a saved file, without OpenVINO. `Decoder` and `write_companions` are for
text generation with ``openvino_genai``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openvino_backend.generation import Decoder as Decoder
    from openvino_backend.generation import write_companions as write_companions
    from openvino_backend.reader import read_weights as read_weights

__all__ = ["Decoder", "read_weights", "write_companions"]


def __getattr__(name: str) -> Any:
    """Import what needs numpy or torch when it is asked for: listing plug-ins must stay light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "reader" if name == "read_weights" else "generation"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
