"""Packed checkpoints, changed as damage changes them, or as somebody else may write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from palette_core.storage.checksums import sealed

HeaderChange = Callable[[dict[str, Any]], Any]


def header_of(path: Path) -> dict[str, Any]:
    """The header as JSON values, without its own checksum."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["palette_core"])
    del header["header_crc32"], header["crc32"]
    return header


def _sealed(header: Any, tensors: Mapping[str, Tensor]) -> str:
    return sealed(header, tensors) if isinstance(header, dict) else json.dumps(header)


def rewritten(
    path: Path,
    header: HeaderChange | None = None,
    tensors: Mapping[str, Tensor | None] | None = None,
    *,
    out: Path | None = None,
) -> Path:
    """The file with its header or some tensors changed (None: taken out), and checksums anew."""
    stored = _changed(path, tensors)
    told = header_of(path)
    changed = told if header is None else header(told)
    text = changed if isinstance(changed, str) else _sealed(changed, stored)
    metadata = {"palette_core": text}
    out = out or path.with_name("changed.safetensors")
    save_file(stored, out, metadata=metadata)
    return out


def damaged(path: Path, tensors: Mapping[str, Tensor | None], *, out: Path | None = None) -> Path:
    """The file with some tensors changed and its header as it was."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    stored = _changed(path, tensors)
    out = out or path.with_name("changed.safetensors")
    save_file(stored, out, metadata=metadata)
    return out


def without_checksums(path: Path, *, out: Path | None = None) -> Path:
    """The file as version 1 of the format had it."""
    told = header_of(path)
    told = {"version": 1, "palettized": told["palettized"], "aliases": told["aliases"]}
    out = out or path.with_name("older.safetensors")
    save_file(load_file(path), out, metadata={"palette_core": json.dumps(told)})
    return out


def _changed(path: Path, tensors: Mapping[str, Tensor | None] | None) -> dict[str, Tensor]:
    stored = load_file(path) | dict(tensors or {})
    return {name: tensor for name, tensor in stored.items() if tensor is not None}
