"""Outputs of blocks on calibration batches, in files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from palette_core._common.tensor_files import save_file
from palette_core.errors import CalibrationError, CheckpointError
from palette_core.storage.span_writing import file_checksum
from palette_core.storage.tensor_spans import read_header_of

NOW, BEFORE = "now", "before"
"""Versions of a model: as it is by now, and as it was."""
_FORM = "form"
_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class KeptOutputs:
    """Outputs of blocks, one file for each block, version and batch.

    Attributes:
        folder: an existing one, for nothing else.
    """

    folder: Path

    def path(self, block: int, version: str, batch: int) -> Path:
        """Return the file of an output."""
        return self.folder / f"{block:05d}-{version}-{batch:06d}.safetensors"

    def put(self, block: int, version: str, batch: int, value: Any) -> None:
        """Keep an output: tensors and plain values, in tuples, lists and dictionaries.

        Raises:
            CalibrationError: it holds something else.
            OSError: it cannot be written.
        """
        leaves, form = tree_flatten(value)
        tensors = {
            str(number): leaf.detach().cpu().clone(memory_format=torch.contiguous_format)
            for number, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor)
        }
        rest = {str(n): leaf for n, leaf in enumerate(leaves) if str(n) not in tensors}
        other = [leaf for leaf in rest.values() if not isinstance(leaf, _PLAIN)]
        try:
            if other:
                raise NotImplementedError(f"a {type(other[0]).__name__}")
            told = json.dumps([treespec_dumps(form), rest])
        except NotImplementedError as error:
            raise CalibrationError(
                f"a block returned what cannot be kept in a file: {error}; expected tensors, in "
                "tuples, lists or dictionaries"
            ) from None
        path = self.path(block, version, batch)
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(tensors, fresh, {_FORM: told})
        fresh.replace(path)

    def get(self, block: int, version: str, batch: int) -> Any:
        """Return an output, its tensors mapped; they may be written to.

        Raises:
            CheckpointError: the file is damaged.
            OSError: it cannot be read.
        """
        path = self.path(block, version, batch)
        file = read_header_of(path)
        try:
            form, rest = json.loads(file.metadata[_FORM])
            found = {**rest, **{name: span.mapped() for name, span in file.spans.items()}}
            leaves = [found[str(number)] for number in range(len(found))]
            return tree_unflatten(leaves, treespec_loads(form))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}") from None

    def checksums(self, block: int) -> dict[str, str]:
        """Return the checksums of a block's files, by name."""
        return {path.name: file_checksum(path) for path in sorted(self._of(block))}

    def keep_only(self, block: int) -> None:
        """Remove the files of all blocks but one."""
        mine = {path.name for path in self._of(block)}
        for path in self.folder.iterdir():
            if path.name not in mine:
                path.unlink(missing_ok=True)

    def _of(self, block: int) -> Iterator[Path]:
        return self.folder.glob(f"{block:05d}-*.safetensors")
