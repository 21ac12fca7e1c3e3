"""Exports without looks for cycles of garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collecting_later() -> Iterator[None]:
    """Let Python look for cycles after the block, if it does so at all.

    An export makes millions of objects, of which most stay until its end. Each look of Python's own
    goes through all of them, and finds next to nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
