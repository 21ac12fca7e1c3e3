"""Packed weights kept in files and mapped into memory, where pages come and go as they are used."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final
from urllib.parse import quote

from safetensors import safe_open
from torch import Tensor

from palette_core._common.files import atomic_path
from palette_core._common.tensor_files import save_file
from palette_core.errors import WeightFileError

_LONGEST_STEM = 120  # file systems allow 255 bytes


@final
@dataclass(frozen=True)
class WeightFile:
    """A file that a model's weight is mapped from.

    Attributes:
        path: where it is.
        size: in bytes, as written.
    """

    path: Path
    size: int

    def check(self) -> None:
        """Raise an error before memory behind a damaged file is read, which would end the process.

        Raises:
            WeightFileError: the file is missing, or its size has changed.
        """
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise WeightFileError(
                f"{self.path}, which a finalized weight is mapped from, cannot be read "
                f"({error.strerror}); put it back, or finalize again"
            ) from None
        if size != self.size:
            raise WeightFileError(
                f"{self.path}, which a finalized weight is mapped from, has {size} bytes instead "
                f"of {self.size}; put the whole file back, or finalize again"
            )


@final
class WeightFolder:
    """A folder that gets one file per weight: all of them, or it is left as it was.

    Used in a ``with`` statement: when its block fails, the files that were made in it are removed,
    files that they replaced are put back, and so are folders that were missing.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._written: list[tuple[Path, Path | None]] = []  # a file, and what stood there before
        self._missing = [part for part in (self._path, *self._path.parents) if not part.exists()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        for path, before in self._written:
            # The error on the way is the one to tell.
            with contextlib.suppress(OSError):
                if kind is not None:
                    path.unlink(missing_ok=True)
                    if before is not None:
                        before.replace(path)
                elif before is not None:
                    before.unlink(missing_ok=True)
        if kind is not None:
            for folder in self._missing:
                with contextlib.suppress(OSError):  # somebody else's files are in it
                    folder.rmdir()

    def next_path(self, name: str) -> Path:
        """Return where to write the file of the next weight; what is there is set aside.

        The name is short, valid anywhere, and one's own.

        Raises:
            OSError: what is there cannot be moved.
        """
        stem = quote(name, safe=" ")[:_LONGEST_STEM]
        path = self._path / f"{len(self._written):05d}-{stem}.safetensors"
        aside = path.with_name(f".{path.name}.before")
        if aside.exists() and not path.exists():
            aside.replace(path)  # a process was killed in between
        before = aside if path.exists() else None
        if before is not None:
            path.replace(before)
        self._written.append((path, before))
        return path


def write_mapped(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], WeightFile]:
    """Write CPU tensors to a safetensors file, whole or not at all, and map them back.

    Returns:
        The same tensors over the file's pages, which are private: writing to a tensor does not
        change the file.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_path(path, make_folders=True) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    with safe_open(path, framework="pt", device="cpu") as file:
        mapped = {name: file.get_tensor(name) for name in tensors}
    return mapped, WeightFile(path, path.stat().st_size)
