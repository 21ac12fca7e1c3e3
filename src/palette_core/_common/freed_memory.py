"""Memory that is free in this process: handed back to the system, or kept."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import numpy as np

_MOST_FOLLOWED = (1 << 25) - (1 << 13)  # 32 MB with what is around a piece


def hand_back() -> None:
    """Give the system what was freed; nothing happens where the C library is not glibc.

    It keeps a heap for each thread, whose free memory no other thread gets.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def keep_freed(size: int) -> None:
    """Have glibc keep up to twice as many bytes at the end of each heap as once were freed.

    What is more it hands back, to be found page by page when it is used again. How much it keeps
    follows the largest piece that was ever freed, up to a limit: so one is freed, which no one has
    touched.

    Args:
        size: bytes.
    """
    if _trim() is not None:
        np.empty(min(size, _MOST_FOLLOWED), np.uint8)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if found is not None:
        found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found
