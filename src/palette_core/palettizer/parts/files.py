"""Folders of parts: what stands in the way, and the manifest of what each file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from palette_core.errors import BackendError
from palette_core.palettizer.parts.flows import Flow
from palette_core.palettizer.parts.making import Parts
from palette_core.palettizer.targets import Target

MANIFEST = "parts.json"


class _Input(BaseModel):
    name: str
    shape: list[int]
    dtype: str
    source: Flow | None = Field(alias="from")


class _PartFiles(BaseModel):
    name: str
    files: list[str]
    inputs: list[_Input] | None


class _Copy(BaseModel):
    weight: str
    parts: list[str]
    bytes: int


class _Manifest(BaseModel):
    backend: str
    parts: list[_PartFiles]
    copies: list[_Copy]
    left_out: list[str]


def check_folder(folder: Path, target: Target) -> None:
    """Refuse to replace what is no folder of parts, or holds anything else.

    Raises:
        BackendError: saying what stands in the way.
    """
    if folder.suffix == target.entry.suffix:
        raise BackendError(
            f"parts are several files; give the path of a folder for them, not {folder.name}"
        )
    if not folder.exists():
        return
    try:
        written = read_manifest(folder)
    except BackendError:
        raise BackendError(
            f"{folder} exists and is no folder of parts; remove it or write elsewhere"
        ) from None
    known = {MANIFEST, *(name for part in written["parts"] for name in part["files"])}
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in known)
    if foreign:
        raise BackendError(
            f"{folder} holds {foreign[0]}, which is no part that was written there; move it away, "
            "or write elsewhere"
        )


def write_manifest(parts: Parts, fresh: Path, target: Target) -> None:
    """Write what the files hold beside them."""
    listed = [
        {
            "name": name,
            "files": files_of(name, target),
            "inputs": [
                {"name": each, "shape": list(tensor.shape), "dtype": str(tensor.dtype)[6:],
                 "from": parts.flows[name][each]}
                for each, tensor in function.inputs.items()
            ] if name in parts.flows else None,
        }
        for name, function in parts.functions.items()
    ]  # fmt: skip
    told = {
        "backend": target.name,
        "parts": listed,
        "copies": [
            {"weight": each.weight, "parts": list(each.parts), "bytes": each.bytes}
            for each in parts.copies
        ],
        "left_out": parts.left_out,
    }
    text = json.dumps(told, indent=2, ensure_ascii=False)
    (fresh / MANIFEST).write_text(text + "\n", encoding="utf8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what `write_manifest` has written.

    Raises:
        BackendError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        return _Manifest.model_validate_json(path.read_bytes()).model_dump(by_alias=True)
    except (OSError, ValueError) as error:
        raise BackendError(f"{path} does not list parts: {error}") from None


def files_of(name: str, target: Target) -> list[str]:
    """Return the names of a part's files."""
    suffixes = (target.entry.suffix, *target.entry.beside)
    return [f"{name}{suffix}" for suffix in suffixes]
