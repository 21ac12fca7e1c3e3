"""Mixed precision, switched off where dtypes matter."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def autocast_off(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Compute in the dtypes at hand: a palette in half precision is another palette."""
    if device_type == "meta" or not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
