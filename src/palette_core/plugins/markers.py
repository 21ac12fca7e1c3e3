"""The markers by which pluggy knows the hooks of palette_core."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pluggy

HookT = TypeVar("HookT", bound=Callable[..., object])

PROJECT = "palette_core"
"""The name of the project in pluggy, and of the entry-point group that plug-ins use."""

hookimpl = pluggy.HookimplMarker(PROJECT)


def hookspec(function: HookT) -> HookT:
    """Mark the specification of a hook; a function, so that its type is known in import cycles."""
    return pluggy.HookspecMarker(PROJECT)(function)
