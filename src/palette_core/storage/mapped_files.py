"""Packed weights kept in files and mapped into memory, where pages come and go as they are used."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Self, final
from urllib.parse import quote

from safetensors import safe_open
from torch import Tensor

from palette_core._common.files import atomic_path
from palette_core._common.locks import alone_in
from palette_core._common.tensor_files import save_file
from palette_core.errors import WeightFileError

_LONGEST_STEM = 120  # file systems allow 255 bytes
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|\d{5}-.*|\.*)(\.|$)", re.IGNORECASE)
_PIECE = 1 << 22
_ASIDE = ".before"


@final
class WeightFile:
    """A file that a model's weight is mapped from.

    What stands at its path may be replaced by another file: the weight keeps the pages of the one
    that it was mapped from, which nobody changes any more.

    Args:
        path: where it will stand.
        written: where it stands now.

    Attributes:
        path: where it is.
        size: in bytes, as written.
    """

    def __init__(self, path: Path, written: Path) -> None:
        self.path = path
        found = written.stat()
        self.size, self._file = found.st_size, (found.st_dev, found.st_ino)
        self._changed = found.st_mtime_ns
        self._checksum = _checksum(written)

    def check(self) -> None:
        """Raise an error before memory behind a damaged file is read, which would end the process.

        Raises:
            WeightFileError: the file is missing, or it has been changed.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise self._error(
                f"cannot be read ({error.strerror}); put it back, or finalize again"
            ) from None
        if (found.st_dev, found.st_ino) != self._file or found.st_mtime_ns == self._changed:
            return
        if found.st_size != self.size:
            raise self._error(
                f"has {found.st_size} bytes instead of {self.size}; put the whole file back, or "
                "finalize again"
            )
        if _checksum(self.path) != self._checksum:
            raise self._error("has been changed; put back what was in it, or finalize again")
        self._changed = found.st_mtime_ns

    def _error(self, what: str) -> WeightFileError:
        return WeightFileError(f"{self.path}, which a finalized weight is mapped from, {what}")


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found = zlib.crc32(piece, found)
    return found


@final
class WeightFolder:
    """A folder that gets one file per weight: all of them, or it is left as it was.

    Used in a ``with`` statement: when its block fails, the files that were made in it are removed,
    files that they replaced are put back, and so are folders that were missing. Two processes that
    write to one folder do so one after the other.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._held = contextlib.ExitStack()
        self._written: list[tuple[Path, Path | None]] = []  # a file, and what stood there before
        self._missing = [part for part in (self._path, *self._path.parents) if not part.exists()]

    def __enter__(self) -> Self:
        try:
            self._held.enter_context(alone_in(self._path))
            _clear_away(self._path)
        except BaseException:
            self._held.close()
            self._remove_folders()
            raise
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        with self._held:
            self._leave(failed=kind is not None)

    def _leave(self, *, failed: bool) -> None:
        for path, before in self._written:
            # The error on the way is the one to tell.
            with contextlib.suppress(OSError):
                if failed and before is not None:
                    before.replace(path)
                elif failed:
                    path.unlink(missing_ok=True)
                if before is not None:
                    before.unlink(missing_ok=True)  # also where both are one file still
        if failed:
            self._remove_folders()

    def _remove_folders(self) -> None:
        for folder in self._missing:
            with contextlib.suppress(OSError):  # somebody else's files are in it
                folder.rmdir()

    def next_path(self, name: str) -> Path:
        """Return where to write the file of the next weight; what is there is kept aside.

        It is the weight's name, with a number in front where that would not do: where it is long,
        cannot be a name on some system, or differs from an earlier one by upper case alone. What is
        there also stays in its place until it is replaced, for models that are mapped from it.

        Raises:
            OSError: what is there cannot be kept.
        """
        stem = quote(name, safe=" ")
        taken = {path.name.casefold() for path, _ in self._written}
        if (
            len(stem) > _LONGEST_STEM
            or f"{stem}.safetensors".casefold() in taken
            or _RESERVED.match(stem)
        ):
            stem = f"{len(self._written):05d}-{stem[:_LONGEST_STEM]}"
        path = self._path / f"{stem}.safetensors"
        before = path.with_name(f".{path.name}{_ASIDE}") if path.exists() else None
        if before is not None:
            _keep_aside(path, before)
        self._written.append((path, before))
        return path


def _clear_away(folder: Path) -> None:
    """Remove what a killed process has kept aside, or put it back where its place is empty."""
    for aside in folder.glob(f".*.safetensors{_ASIDE}"):
        path = aside.with_name(aside.name[1:].removesuffix(_ASIDE))
        if path.exists():
            aside.unlink()
        else:
            aside.replace(path)


def _keep_aside(path: Path, aside: Path) -> None:
    try:
        aside.hardlink_to(path)
    except OSError:  # of file systems that know no second names
        path.replace(aside)


def write_mapped(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], WeightFile]:
    """Write CPU tensors to a safetensors file, whole or not at all, and map them back.

    Returns:
        The same tensors over the file's pages, which are private: writing to a tensor does not
        change the file.

    Raises:
        OSError: the file cannot be written.
    """
    # Mapped before it takes its place, where another process may put another file right after.
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        with safe_open(temporary, framework="pt", device="cpu") as file:
            mapped = {name: file.get_tensor(name) for name in tensors}
        written = WeightFile(path, temporary)
    return mapped, written
