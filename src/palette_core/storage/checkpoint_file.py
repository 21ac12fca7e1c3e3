"""Packed checkpoints: one safetensors file with indices, look-up tables and everything else.

For each palettized weight ``name`` the file holds ``name.indices`` (1-D uint8, a little-endian
bit stream), ``name.lut`` and, where they exist, ``name.lut_scale``, ``name.lut_zero_point`` and
``name.scale``; every other parameter and buffer is held dense under its own name. The metadata
entry ``palette_core`` is JSON with the format's version and what is needed to decode.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palette_core.errors import CheckpointError
from palette_core.tensors.dtypes import dtype_name, parse_dtype
from palette_core.tensors.packing import packed_size, unpack_indices
from palette_core.tensors.palettized import PalettizedTensor

FORMAT_VERSION = 1
METADATA_KEY = "palette_core"
PARTS = ("lut", "lut_scale", "lut_zero_point", "scale")


@dataclass(frozen=True)
class Checkpoint:
    """A packed checkpoint, read.

    Attributes:
        palettized: palettized weights by the fully qualified name of their first owner.
        dense: every other tensor by name.
        aliases: further names of tied tensors: alias to first name.
        version: of the format.
    """

    palettized: Mapping[str, PalettizedTensor]
    dense: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    version: int


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a packed checkpoint, without a model.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a packed checkpoint, truncated, damaged, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata() or {})
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    palettized = {
        name: _palettized(path, name, record, stored)
        for name, record in header["palettized"].items()
    }
    own = {f"{n}.{part}" for n in palettized for part in ("indices", *PARTS)}
    dense = {name: stored[name] for name in sorted(stored.keys() - own)}
    return Checkpoint(palettized, dense, header["aliases"], header["version"])


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file but not a packed checkpoint (no {METADATA_KEY!r} in "
            "its metadata); write one with save_checkpoint"
        )
    try:
        header: Any = json.loads(metadata[METADATA_KEY])
    except ValueError as error:
        raise _damaged(path, f"no JSON: {error}") from None
    if not isinstance(header, dict) or "version" not in header:
        raise _damaged(path, "no version")
    if header["version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {header['version']!r}; "
            f"this palette_core reads {FORMAT_VERSION}"
        )
    aliases = header.get("aliases")
    if not isinstance(header.get("palettized"), dict) or not isinstance(aliases, dict):
        raise _damaged(path, "'palettized' and 'aliases' must be objects")
    if not all(isinstance(first, str) for first in aliases.values()):
        raise _damaged(path, "'aliases' must map names to names")
    return header


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: its {METADATA_KEY!r} metadata is damaged: {what}")


def _palettized(
    path: Path, name: str, record: Any, stored: Mapping[str, Tensor]
) -> PalettizedTensor:
    lacking = [p for p in (f"{name}.indices", f"{name}.lut") if p not in stored]
    if lacking:
        raise CheckpointError(f"{path} lacks {' and '.join(lacking)}")
    n_bits, axis, index_shape, dtype = _decoding(path, name, record)
    count = math.prod(index_shape)
    packed = stored[f"{name}.indices"]
    if packed.dtype is not torch.uint8 or packed.shape != (packed_size(count, n_bits),):
        raise CheckpointError(
            f"{path}: {name}.indices is {dtype_name(packed.dtype)} of shape {tuple(packed.shape)}, "
            f"expected uint8 of shape {(packed_size(count, n_bits),)} for {count} indices of "
            f"{n_bits} bits"
        )
    lut, lut_scale, zero, scale = (stored.get(f"{name}.{part}") for part in PARTS)
    assert lut is not None
    tensor = PalettizedTensor(
        unpack_indices(packed, n_bits, count).reshape(index_shape),
        lut, n_bits, axis, dtype, lut_scale, zero, scale,
    )  # fmt: skip
    try:
        tensor.check()
    except ValueError as error:
        raise CheckpointError(f"{path}: {name}: {error}") from None
    return tensor


def _decoding(path: Path, name: str, record: Any) -> tuple[int, int, list[int], torch.dtype]:
    """Return bits, axis, index shape and dtype from a tensor's record."""
    try:
        n_bits, axis, shape = record["n_bits"], record["axis"], record["index_shape"]
        dtype = parse_dtype(record["dtype"])
        whole = all(type(number) is int for number in (n_bits, axis, *shape))
        if not (whole and 1 <= n_bits <= 8 and shape and min(shape) > 0):
            raise ValueError(f"n_bits {n_bits!r}, axis {axis!r}, index_shape {shape!r}")
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype {dtype!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"record of {name}: {type(error).__name__}: {error}") from None
    return n_bits, axis, list(shape), dtype
