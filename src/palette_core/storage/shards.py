"""Indexes of checkpoints that are cut into several files, as Hugging Face writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from palette_core._common.bounded_json import read_json
from palette_core._common.files import atomic_path
from palette_core.errors import CheckpointError, shortened

INDEX_SUFFIX = ".index.json"
_SHOWN = 3


def read_index(path: Path) -> dict[str, str]:
    """Return the file of each tensor, by name.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is no index, or names files outside of its folder.
        OSError: it cannot be read.
    """
    try:
        found: Any = read_json(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, f"it is no JSON: {error}") from None
    files = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not files:
        raise _damaged(path, "it has no 'weight_map' from names of tensors to files")
    for name, file in files.items():
        if not isinstance(file, str) or Path(file).name != file or "\0" in file:
            raise _damaged(
                path, f"{shortened(name)} lies in {shortened(repr(file))}, which names no file here"
            )
    return files


def write_index(path: Path, files: Mapping[str, str], total_size: int) -> None:
    """Write the index of a checkpoint, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    value = {
        "metadata": {"total_size": total_size},
        "weight_map": {name: files[name] for name in sorted(files)},
    }
    with atomic_path(path) as fresh:
        fresh.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_complete(path: Path, files: Mapping[str, str], held: Mapping[str, Iterable[str]]) -> None:
    """Compare an index with the names that its files hold.

    Raises:
        CheckpointError: a tensor lies in two files, or not in the one that the index names.
    """
    where: dict[str, str] = {}
    for file, names in held.items():
        for name in names:
            if name in where:
                raise CheckpointError(
                    f"{path.parent}: {shortened(name)} is in {where[name]} and in {file}; of two "
                    "tensors of one name nobody knows which is meant, remove one"
                )
            where[name] = file
    missing = [name for name, file in files.items() if where.get(name) != file]
    if missing:
        names = ", ".join(shortened(name) for name in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise CheckpointError(
            f"{path} says that {names}{more} lies in {files[missing[0]]}, where it is not; get "
            "index and files again from where they came from"
        )


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged, or no index of a checkpoint: {what}")
