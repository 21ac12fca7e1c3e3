"""Memory that is free in this process: kept to be used again, or handed back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_KEPT = 3 << 27  # bytes that may be free, at the end of the heap or anywhere in it
_SHARE = 8  # of what was in use at most may be taken beside it, where that is more
_USUAL = {_MMAP_MAX: 1 << 16, _MMAP_THRESHOLD: 1 << 25, _TRIM_THRESHOLD: 1 << 26}
"""What glibc comes to by itself where pieces of 32 MB are freed, as they are beside a model."""


class _Account(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "mapped",
            "usmblks",
            "fsmblks",
            "used",
            "free",
            "keepcost",
        )
    ]


class _Heap:
    """Memory of glibc, and those who have asked for what is freed to be kept in it."""

    def __init__(self, glibc: ctypes.CDLL) -> None:
        self._glibc = glibc
        self._lock = threading.Lock()
        self._users = 0
        self._beside = self._most = 0

    @property
    def can_tell(self) -> bool:
        """Return whether it says how much is in use, as it does since 2.33."""
        return hasattr(self._glibc, "mallinfo2")

    def keep(self) -> None:
        """Keep what is freed."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._beside, self._most = _resident() - self._used(), 0
                self._glibc.mallopt(_MMAP_MAX, 0)
                self._glibc.mallopt(_TRIM_THRESHOLD, _KEPT)

    def let_go(self) -> None:
        """Keep it no longer, as far as one user is concerned."""
        with self._lock:
            self._users -= 1
            if not self._users:
                for option, value in _USUAL.items():
                    self._glibc.mallopt(option, value)
                self.hand_back()

    def hand_back(self) -> None:
        """Give the system all that is free."""
        self._glibc.malloc_trim(0)

    def hand_back_much(self) -> None:
        """Do so where it is kept, and all takes a share more than was in use at most."""
        if not self._users:
            return
        used = self._used()
        self._most = max(self._most, used)
        if _resident() - self._beside > max(used + _KEPT, self._most + self._most // _SHARE):
            self.hand_back()

    def _used(self) -> int:
        account = self._glibc.mallinfo2()
        return int(account.used + account.mapped)


def hand_back_much() -> None:
    """Give the system what was freed, where memory takes an eighth more than was in use at most.

    That is since `freed_is_kept` began, and only inside of it.
    """
    heap = _heap()
    if heap is not None:
        heap.hand_back_much()


def hand_back() -> None:
    """Give the system what was freed; nothing happens where the C library is not glibc.

    It keeps a heap for each thread, whose free memory no other thread gets.
    """
    heap = _heap()
    if heap is not None:
        heap.hand_back()


@contextlib.contextmanager
def freed_is_kept() -> Iterator[None]:
    """Have what is freed used again, and hand it back when all who asked for this have left.

    By itself glibc gives large pieces back when they are freed, and finds them page by page when it
    is asked for the next one: with the activations of a model that can take as long as to compute
    them. Nothing happens where the C library is another one or older than 2.33, or the environment
    says how it is to allocate memory.
    """
    heap = _heap()
    if heap is None or not heap.can_tell or _is_set_by_user():
        yield
        return
    heap.keep()
    try:
        yield
    finally:
        heap.let_go()


_ENVIRONMENT = Path("/proc/self/environ")


def _is_set_by_user() -> bool:
    """Return whether the environment said how to allocate memory when this process began.

    That is when glibc looked. Libraries set variables later for processes of theirs, as dask does.
    """
    try:
        begun_with = os.fsdecode(_ENVIRONMENT.read_bytes()).split("\0")
        said = dict(each.partition("=")[::2] for each in begun_with)
    except OSError:  # a process that nobody may look into, itself included
        said = dict(os.environ)
    usual = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    tuned = "glibc.malloc" in said.get("GLIBC_TUNABLES", "")
    return tuned or any(name in said for name in usual)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _heap() -> _Heap | None:
    """Return glibc's heap where there is one."""
    if sys.platform != "linux":
        return None
    glibc = ctypes.CDLL(None)
    if not hasattr(glibc, "malloc_trim") or not Path("/proc/self/statm").exists():
        return None
    glibc.malloc_trim.argtypes, glibc.malloc_trim.restype = [ctypes.c_size_t], ctypes.c_int
    glibc.mallopt.argtypes, glibc.mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    if hasattr(glibc, "mallinfo2"):
        glibc.mallinfo2.argtypes, glibc.mallinfo2.restype = [], _Account
    return _Heap(glibc)
