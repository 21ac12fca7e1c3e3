"""Locks of folders between processes, which end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import final

_fcntl: ModuleType | None
try:
    import fcntl as _fcntl
except ImportError:  # pragma: no cover - Windows: nothing is locked
    _fcntl = None

can_lock = _fcntl is not None
_PATIENCE = 600.0  # seconds
_PAUSE = 0.02


@final
class Lock:
    """Lock of a folder, until it is released, or an interrupt has left nobody who could do so.

    Raises:
        OSError: the folder cannot be opened.
    """

    _handle: int | None = None

    def __init__(self, folder: Path) -> None:
        self._handle = os.open(folder, os.O_RDONLY)

    def take(self) -> bool:
        """Return whether nobody else has it, and take it.

        Raises:
            OSError: this file system knows no locks.
        """
        if _fcntl is None or self._handle is None:
            return False
        try:
            _fcntl.flock(self._handle, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_of(self, folder: Path) -> bool:
        """Return whether this is the folder that stands there now."""
        try:
            return self._handle is not None and os.path.samestat(
                os.fstat(self._handle), folder.stat()
            )
        except OSError:
            return False

    def release(self) -> None:
        """End it."""
        if "_handle" in vars(self):
            os.close(vars(self).pop("_handle"))  # in one step, which nothing comes between

    def __del__(self) -> None:
        self.release()


def lock(folder: Path) -> Lock | None:
    """Return the lock of a folder, or None where somebody has it, or nobody can."""
    if not can_lock:
        return None
    with contextlib.suppress(OSError):
        held = Lock(folder)
        if held.take():
            return held
    return None


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder where it is missing, and hold it against all who hold it in this way too.

    Others are waited for. Where file systems know no locks, nobody is.

    Raises:
        OSError: the folder cannot be made, or somebody has held it for ten minutes.
    """
    held = _waited_for(folder)
    try:
        yield
    finally:
        if held is not None:
            held.release()


def _waited_for(folder: Path) -> Lock | None:
    give_up = time.monotonic() + _PATIENCE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if not can_lock:
            return None
        held = Lock(folder)
        try:
            taken = held.take()
        except OSError:
            return None
        if taken and held.is_of(folder):  # else whoever held it has removed it
            return held
        held.release()
        if time.monotonic() > give_up:
            raise OSError(errno.EAGAIN, "another process goes on writing in it", str(folder))
        time.sleep(_PAUSE)
