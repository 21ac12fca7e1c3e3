"""Check of a packed checkpoint, tensor by tensor, that it holds what was written into it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from palette_core.errors import CheckpointError, PaletteWarning
from palette_core.storage.checkpoint_folders import FolderReader, open_checkpoint
from palette_core.storage.checkpoint_reading import CheckpointReader


@dataclass(frozen=True)
class Verification:
    """Result of checking a packed checkpoint.

    Attributes:
        version: of the format.
        has_checksums: the tensors could be compared with their checksums.
        problems: by the name of each tensor, why it cannot be right; an empty text if it can.
    """

    version: int
    has_checksums: bool
    problems: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Return whether every tensor was compared with its checksum, and all is right."""
        return self.has_checksums and not any(self.problems.values())


def verify_checkpoint(path: str | Path) -> Verification:
    """Read every tensor of a packed checkpoint, a file or a folder, one by one, and check it.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a packed checkpoint, of another version, or its header is damaged; or
            a weight's stored form is not installed, or is blocked.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaletteWarning)  # of no checksums, which is told here
        reader = open_checkpoint(path)
    with reader as file:
        problems = {name: _problem(file, name) for name in file.palettized_names}
        problems |= {name: _problem(file, name) for name in file.dense_names}
        return Verification(file.version, file.has_checksums, problems)


def _problem(file: CheckpointReader | FolderReader, name: str) -> str:
    try:
        if name in file.palettized_names:
            file.palettized(name)
        else:
            file.dense(name)
    except CheckpointError as error:
        return str(error)
    return ""
