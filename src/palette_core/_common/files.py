"""Write files and folders whole or not at all, and clear away what a killed process left.

What is written stands in a hidden work folder beside its place, ``.NAME.palette-XXXXXXXX``, until
it is complete and on the disk; then one rename puts it there. Each work folder is locked by the
process that writes in it. A kill ends the lock, so that the next run knows which ones to remove.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from palette_core._common.locks import Lock, can_lock, lock

_MARK = ".palette-"
_WORK = re.compile(r"\.(?P<name>.+)\.palette-\w{8}", re.DOTALL)
_FORMER = ".former"  # in a work folder: the folder that stood at the place before


@contextlib.contextmanager
def atomic_path(path: Path, *, beside: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a fresh path of the same name, put in the place of ``path`` when the block succeeds.

    When the block fails or is interrupted, what was written is removed, and what stood at
    ``path`` before still does. What work folders of killed processes hold is put back or removed.

    Args:
        path: a file or folder that is there or not; a symbolic link is written through, and the
            permissions of what was there are kept.
        beside: suffixes of further files, written beside the yielded path under its stem. All of
            them take their places, or none; at no moment does ``path`` stand beside a file that
            it was not written with.

    Raises:
        OSError: the folder of ``path`` is missing or cannot be written to, ``path`` is neither
            file nor folder, or the disk is full.
    """
    place = Path(os.path.realpath(path))
    check_place(path)
    with work_folder(place.parent, place.name) as work:
        fresh = work / place.name
        try:
            yield fresh
        except OSError as error:
            if error.filename is not None and str(error.filename).startswith(str(work)):
                error.filename = str(path)  # nobody knows the hidden one
            raise
        if not fresh.is_dir():
            _refuse_folder(place)
        _keep_mode(fresh, place)
        _sync(fresh)
        with _put_beside(fresh, place, work, beside):
            _put(fresh, place, work / _FORMER)
        with contextlib.suppress(OSError):  # it is there already
            _sync_entry(place.parent)


def check_place(path: Path, *, is_file: bool = False) -> None:
    """Find out before the work whether a file or folder can be written at ``path``.

    Args:
        path: where to write.
        is_file: a file is to be written, which no folder makes room for.

    Raises:
        FileNotFoundError: its folder does not exist.
        OSError: its folder cannot be written to, or what stands there is neither file nor folder.
    """
    place = Path(os.path.realpath(path))
    if not place.parent.exists():
        hint = f"the folder does not exist; make it first: mkdir -p {place.parent}"
        raise FileNotFoundError(errno.ENOENT, hint, str(place.parent))
    if is_file:
        _refuse_folder(place)
    with contextlib.suppress(FileNotFoundError):
        mode = place.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "neither a file nor a folder", str(path))
    with work_folder(place.parent, place.name):
        pass


def _refuse_folder(place: Path) -> None:
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, "this is a folder; name a file", str(place))


@contextlib.contextmanager
def work_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new hidden folder in ``parent``, removed with all it holds on every way out.

    Raises:
        OSError: it cannot be made.
    """
    work, release = lasting_work_folder(parent, name)
    try:
        yield work
    finally:
        release()


def lasting_work_folder(parent: Path, name: str) -> tuple[Path, Callable[[], None]]:
    """Return a new hidden folder in ``parent``, and what removes it with all that it holds.

    Raises:
        OSError: it cannot be made.
    """
    clear_away(parent)
    work, held = _locked_folder(parent, name)

    def release() -> None:
        shutil.rmtree(work, ignore_errors=True)
        if held is not None:
            held.release()

    return work, release


_cleared: set[tuple[int, Path]] = set()  # per process, forked ones apart


def clear_away(folder: Path) -> None:
    """Remove what killed processes left in ``folder``, and put back what they moved away.

    Done once by a process: folders of many files are not searched for each of them.
    """
    if not can_lock or (os.getpid(), folder) in _cleared:
        return
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _WORK.fullmatch(entry.name)
            if match is not None and entry.is_dir(follow_symlinks=False):
                _clear(Path(entry.path), folder / match["name"])
        _cleared.add((os.getpid(), folder))


def _clear(work: Path, place: Path) -> None:
    held = lock(work)
    if held is None:
        return  # somebody writes in it
    try:
        if not place.exists():
            for former in work.glob(f"{_FORMER}*"):
                suffix = former.name.removeprefix(_FORMER)
                former.replace(place.with_suffix(suffix) if suffix else place)
        shutil.rmtree(work, ignore_errors=True)
    finally:
        held.release()


def _locked_folder(parent: Path, name: str) -> tuple[Path, Lock | None]:
    """Make a work folder; where locks do not work, it stays unlocked, and is never cleared."""
    while True:
        try:
            work = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}{_MARK}"))
        except OSError as error:
            reason = f"cannot write in this folder: {error.strerror}"
            raise type(error)(error.errno, reason, str(parent)) from None
        held = lock(work)
        if work.exists():  # else another process has cleared it away before it was locked
            return work, held
        if held is not None:
            held.release()


def _keep_mode(fresh: Path, place: Path) -> None:
    if place.exists() and place.is_dir() == fresh.is_dir():
        fresh.chmod(stat.S_IMODE(place.stat().st_mode))
    elif fresh.is_file():
        mask = os.umask(0)
        os.umask(mask)
        fresh.chmod(0o666 & ~mask)  # some libraries make files private


def _sync(fresh: Path) -> None:
    """Have all of a file or folder written to the disk, so that a full one is noticed now."""
    for folder, _, names in os.walk(fresh):
        for name in names:
            _sync_entry(Path(folder) / name)
        _sync_entry(Path(folder))
    if not fresh.is_dir():
        _sync_entry(fresh)


def size_on_disk(path: Path, *, beside: Sequence[str] = ()) -> int:
    """Return the bytes of a file and of those ``beside`` it, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path, *map(path.with_suffix, beside))
    return sum(file.stat().st_size for file in files if file.is_file())


def sync_file(path: Path) -> None:
    """Have a file written to the disk, so that a full one is noticed now.

    Raises:
        OSError: the disk is full, or it cannot be written for another reason.
    """
    _sync_entry(path)


def _sync_entry(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # pragma: no cover - has no descriptors of folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems know no fsync
            raise
    finally:
        os.close(handle)


def _put(fresh: Path, place: Path, former: Path) -> None:
    """Rename ``fresh`` to ``place``; a folder that stands there changes places with it."""
    if not fresh.is_dir() or not place.exists():
        fresh.replace(place)
    elif not _exchanged(fresh, place):
        try:
            place.rename(former)
            fresh.rename(place)
        except BaseException:
            if former.exists() and not place.exists():
                former.rename(place)
            raise


@contextlib.contextmanager
def _put_beside(fresh: Path, place: Path, work: Path, beside: Sequence[str]) -> Iterator[None]:
    """Put further files in their places, what stands at ``place`` aside; all back on failure."""
    with contextlib.ExitStack() as undo:
        if beside:
            _set_aside(place, work / _FORMER, undo)
        for suffix in beside:
            made, target = fresh.with_suffix(suffix), place.with_suffix(suffix)
            _refuse_folder(target)
            _keep_mode(made, target)
            _sync(made)
            _set_aside(target, work / f"{_FORMER}{suffix}", undo)
            made.rename(target)
            undo.callback(target.unlink)
        yield
        undo.pop_all()


def _set_aside(place: Path, former: Path, undo: contextlib.ExitStack) -> None:
    if place.exists():
        place.rename(former)
        undo.callback(former.rename, place)


_EXCHANGE = 2  # RENAME_EXCHANGE of Linux
_HERE = -100  # AT_FDCWD


def _exchanged(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; return whether the system can."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    return int(call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)) == 0
