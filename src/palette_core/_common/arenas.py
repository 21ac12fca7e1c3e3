"""Memory of many threads of which one runs at a time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

_M_ARENA_MAX = -8  # of <malloc.h>


@contextlib.contextmanager
def shared_arena() -> Iterator[None]:
    """Let threads that begin inside allocate from one place, with the GNU C library.

    By default each has one of up to eight times as many as there are cores, which keep what was
    given back for threads of their own: much of it, where threads take turns.
    """
    if not _set_most_arenas(1):
        yield
        return
    try:
        yield
    finally:
        usual = os.environ.get("MALLOC_ARENA_MAX", "")
        _set_most_arenas(int(usual) if usual.isdecimal() else 0)


def _set_most_arenas(count: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, count))
