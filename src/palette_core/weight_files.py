"""Packed weights kept in files and mapped into memory, where pages come and go as they are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final
from urllib.parse import quote

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from palette_core.errors import WeightFileError
from palette_core.files import atomic_path

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


def weight_path(directory: Path, number: int, name: str) -> Path:
    """Return the name of the file for a weight: short, valid anywhere, and one's own."""
    stem = quote(name, safe=" ")[:_LONGEST_STEM]
    return directory.resolve() / f"{number:05d}-{stem}.safetensors"


def write_mapped(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], WeightFile]:
    """Write CPU tensors to a safetensors file, whole or not at all, and map them back.

    Returns:
        The same tensors over the file's pages, which are private: writing to a tensor does not
        change the file.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    with safe_open(path, framework="pt", device="cpu") as file:
        mapped = {name: file.get_tensor(name) for name in tensors}
    return mapped, WeightFile(path, path.stat().st_size)
