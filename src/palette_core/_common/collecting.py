"""Python's looks for cycles of garbage, put off for a while."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collecting_later() -> Iterator[None]:
    """Let Python look for cycles after the block, if it does so at all.

    A look goes through all objects, those of imported libraries included, which takes longer than
    it takes to trace a small model; and nearly all that is made meanwhile is kept. For blocks that
    are over soon: garbage in cycles stays until their end.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
