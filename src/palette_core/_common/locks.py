"""Locks of folders between processes, which end with the process that holds them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

_fcntl: ModuleType | None
try:
    import fcntl as _fcntl
except ImportError:  # pragma: no cover - Windows: nothing is locked
    _fcntl = None

can_lock = _fcntl is not None


def lock(folder: Path, *, wait: bool = False) -> int | None:
    """Return a descriptor that locks a folder as long as it is open; None if that fails.

    Args:
        folder: to be locked.
        wait: for others to be done with it, rather than fail.
    """
    if _fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        _fcntl.flock(handle, _fcntl.LOCK_EX | (0 if wait else _fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder where it is missing, and hold it against all who hold it in this way too.

    Others are waited for. Where file systems know no locks, nobody is.

    Raises:
        OSError: the folder cannot be made.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = lock(folder, wait=True)
        if handle is None or _is_at(handle, folder):
            break
        os.close(handle)  # whoever held it has removed it
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _is_at(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except OSError:
        return False
