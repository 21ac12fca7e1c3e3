"""Memory that is free in this process, handed back to the system."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


def hand_back() -> None:
    """Give the system what was freed; nothing happens where the C library is not glibc.

    It keeps a heap for each thread, whose free memory no other thread gets.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if found is not None:
        found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found
