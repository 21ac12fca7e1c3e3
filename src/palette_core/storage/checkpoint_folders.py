"""Packed checkpoints in folders: one file or several, each a packed checkpoint of its own.

A folder holds ``palette.safetensors``, or ``palette-00001-of-00003.safetensors`` and so on beside
``palette.safetensors.index.json``, which says in which file each tensor lies.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Self, final

from torch import Tensor

from palette_core.errors import CheckpointError
from palette_core.plugins.checked.stored_forms import CheckedForm
from palette_core.storage.checkpoint_reading import Checkpoint, CheckpointReader
from palette_core.storage.origins import Origin
from palette_core.storage.shards import INDEX_SUFFIX, check_complete, read_index
from palette_core.tensors.layout import Shape
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import StoredTensor

SINGLE = "palette.safetensors"
INDEX = f"{SINGLE}{INDEX_SUFFIX}"
UNFINISHED = ".palette-unfinished"


def open_checkpoint(path: str | Path) -> CheckpointReader | FolderReader:
    """Open a packed checkpoint, a file or a folder.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: not a packed checkpoint, damaged, or of another version.
    """
    return FolderReader(path) if Path(path).is_dir() else CheckpointReader(path)


def checkpoint_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the tensors of a packed checkpoint.

    Raises:
        FileNotFoundError: the folder holds none.
        CheckpointError: its index is damaged, or it is not finished.
    """
    if not path.is_dir():
        return (path,)
    if (path / UNFINISHED).exists():
        raise CheckpointError(
            f"{path} is not finished; the command that was to write it goes on from there"
        )
    single, index = path / SINGLE, path / INDEX
    if index.exists():
        if single.exists():
            raise CheckpointError(
                f"{path} holds both {SINGLE} and {INDEX}; remove what is not meant"
            )
        return tuple(path / name for name in sorted(set(read_index(index).values())))
    if not single.exists():
        raise FileNotFoundError(f"no packed checkpoint in {path}: neither {SINGLE} nor {INDEX}")
    return (single,)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a packed checkpoint, a file or a folder, without a model.

    Every tensor is checked against its checksum. A file of an older version has none, which is
    warned of.

    Raises:
        FileNotFoundError: no such file, or none in the folder.
        CheckpointError: not a packed checkpoint, truncated, damaged, or of another version; or
            a weight's stored form is not installed, or is blocked.
    """
    with open_checkpoint(path) as file:
        return Checkpoint(
            {name: file.palettized(name) for name in file.palettized_names},
            {name: file.dense(name) for name in file.dense_names},
            file.aliases,
            file.version,
            {name: file.form(name).name for name in file.palettized_names},
            file.origins,
            file.values,
            file.written,
        )


@final
class FolderReader:
    """A packed checkpoint of several files, opened; as `CheckpointReader`, which see.

    Args:
        path: of the folder.

    Raises:
        FileNotFoundError: it holds no packed checkpoint, or lacks a file of it.
        CheckpointError: a file is no packed checkpoint, damaged, or of another version; two hold
            a tensor of one name, or the index does not fit.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        files = checkpoint_files(path)
        self._readers: dict[str, CheckpointReader] = {}
        self.aliases: dict[str, str] = {}
        self.origins: dict[str, Origin] = {}
        self.values: dict[str, Any] = {}
        with contextlib.ExitStack() as opened:
            readers = [opened.enter_context(CheckpointReader(file)) for file in files]
            held = {r.path.name: [*r.stored_names, *r.aliases, *r.values] for r in readers}
            index = path / INDEX
            check_complete(index, read_index(index) if index.exists() else {}, held)
            self._opened = opened.pop_all()
        for reader in readers:
            names = (*reader.palettized_names, *reader.dense_names)
            self._readers |= dict.fromkeys(names, reader)
            self.aliases |= reader.aliases
            self.origins |= reader.origins
            self.values |= reader.values
        self.written = tuple(name for reader in readers for name in reader.written)
        self.version = min(reader.version for reader in readers)
        self.has_checksums = all(reader.has_checksums for reader in readers)
        self.palettized_names = tuple(n for reader in readers for n in reader.palettized_names)
        self.dense_names = tuple(sorted(n for reader in readers for n in reader.dense_names))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        self._opened.close()

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor; see `CheckpointReader.shape`."""
        return self._of(self.aliases.get(name, name)).shape(name)

    def dense(self, name: str) -> Tensor:
        """Read a tensor that is not palettized; see `CheckpointReader.dense`."""
        return self._of(name).dense(name)

    def palettized(self, name: str) -> PalettizedTensor:
        """Read a palettized weight; see `CheckpointReader.palettized`."""
        return self._of(name).palettized(name)

    def stored(self, name: str) -> StoredTensor:
        """Return a palettized weight in its stored form; see `CheckpointReader.stored`."""
        return self._of(name).stored(name)

    def form(self, name: str) -> CheckedForm:
        """Return the stored form of a palettized weight; see `CheckpointReader.form`."""
        return self._of(name).form(name)

    def _of(self, name: str) -> CheckpointReader:
        return self._readers[name]
