"""Metadata of a packed checkpoint: a header in JSON, with checksums of tensors and of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palette_core._common.bounded_json import read_json
from palette_core.errors import CheckpointError
from palette_core.storage.checksums import checksums_of, is_sealed, sealed
from palette_core.storage.origins import Origin, as_json, from_json
from palette_core.tensors.dtypes import parse_dtype

FORMAT_VERSION = 2
WITHOUT_CHECKSUMS = 1  # the version before
METADATA_KEY = "palette_core"
_LONGEST = 1 << 48  # elements along an axis, far below what overflows


@dataclass(frozen=True)
class Header:
    """Content of the metadata.

    Attributes:
        version: of the format.
        palettized: a record for each palettized weight, to be read by `decoding`.
        aliases: further names of tied tensors: alias to first name.
        checksums: of every tensor that was written, by key; None in files of the first version.
        origins: where palettes come from, by name, as far as is known.
        values: what modules keep that is no tensor, in JSON values, by name.
        written: names of buffers that the model writes when it runs; the file does not hold them.
    """

    version: int
    palettized: Mapping[str, Any]
    aliases: Mapping[str, str]
    checksums: Mapping[str, str] | None
    origins: Mapping[str, Origin]
    values: Mapping[str, Any]
    written: Sequence[str]


def metadata_of(
    records: Mapping[str, Any],
    aliases: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    origins: Mapping[str, Origin],
    values: Mapping[str, Any],
    written: Sequence[str] = (),
) -> dict[str, str]:
    """Return the metadata of a file of CPU tensors.

    Raises:
        CheckpointError: a value is none that JSON holds exactly.
    """
    for name, value in values.items():
        _check_value(name, value)
    header = header_of(records, aliases, origins)
    if values:
        header["values"] = dict(values)
    if written:
        header["written"] = list(written)
    return {METADATA_KEY: sealed(header, tensors)}


def header_of(
    records: Mapping[str, Any], aliases: Mapping[str, str], origins: Mapping[str, Origin]
) -> dict[str, Any]:
    """Return the header of a file without values of modules, to be sealed."""
    return {
        "version": FORMAT_VERSION,
        "palettized": dict(records),
        "aliases": dict(aliases),
        "origin": as_json(origins),
    }


def _check_value(name: str, value: Any) -> None:
    try:
        is_kept = read_json(json.dumps(value)) == value
    except (TypeError, ValueError, RecursionError):
        is_kept = False
    if not is_kept:
        raise CheckpointError(
            f"{name} is a {type(value).__name__} that no checkpoint can hold: one holds tensors, "
            "and of the rest what is the same after a trip through JSON (numbers, texts, lists, "
            "dictionaries by text); let the module give such a value, get_extra_state() of it for "
            "instance, or take the module out of the model before saving"
        )


def read_header(path: Path, metadata: Mapping[str, str]) -> Header:
    """Read and check the metadata of the file ``path``.

    Raises:
        CheckpointError: it is no packed checkpoint, of another version, or its metadata is damaged.
    """
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file but not a packed checkpoint (no {METADATA_KEY!r} in "
            "its metadata); write one with save_checkpoint"
        )
    text = metadata[METADATA_KEY]
    try:
        is_sealed(text)
    except ValueError as error:
        raise damaged(path, str(error)) from None
    try:
        header: Any = read_json(text)
    except ValueError as error:
        raise damaged(path, f"no JSON: {error}") from None
    if not isinstance(header, dict) or "version" not in header:
        raise damaged(path, "no version")
    version = header["version"]
    if version not in (WITHOUT_CHECKSUMS, FORMAT_VERSION) or type(version) is not int:
        raise CheckpointError(
            f"{path} has format version {version!r}; this palette_core reads {FORMAT_VERSION} and "
            f"{WITHOUT_CHECKSUMS}"
        )
    records, aliases = header.get("palettized"), header.get("aliases")
    if not isinstance(records, dict) or not isinstance(aliases, dict):
        raise damaged(path, "'palettized' and 'aliases' must be objects")
    if not _are_texts(aliases):
        raise damaged(path, "'aliases' must map names to names")
    try:
        checksums = checksums_of(header, text) if version == FORMAT_VERSION else None
    except ValueError as error:
        raise damaged(path, str(error)) from None
    try:
        origins = from_json(header.get("origin", {}))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise damaged(path, f"origin: {type(error).__name__}: {error}") from None
    values = header.get("values", {})
    if not isinstance(values, dict):
        raise damaged(path, "'values' must be an object")
    written = header.get("written", [])
    if not isinstance(written, list) or not all(isinstance(name, str) for name in written):
        raise damaged(path, "'written' must be a list of names")
    return Header(version, records, aliases, checksums, origins, values, tuple(written))


def _are_texts(values: Mapping[str, Any]) -> bool:
    return all(isinstance(value, str) for value in values.values())


def damaged(path: Path, what: str) -> CheckpointError:
    """Return the error of metadata that cannot be right."""
    return CheckpointError(f"{path}: its {METADATA_KEY!r} metadata is damaged: {what}")


def decoding(path: Path, name: str, record: Any) -> tuple[int, int, list[int], torch.dtype]:
    """Return bits, axis, index shape and dtype from a tensor's record.

    Raises:
        CheckpointError: one is missing, or cannot be.
    """
    try:
        n_bits, axis, shape = record["n_bits"], record["axis"], record["index_shape"]
        dtype = parse_dtype(record["dtype"])
        whole = all(type(number) is int for number in (n_bits, axis, *shape))
        if not (whole and 1 <= n_bits <= 8 and shape and 0 < min(shape) <= max(shape) <= _LONGEST):
            raise ValueError(f"n_bits {n_bits!r}, axis {axis!r}, index_shape {shape!r}")
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype {dtype!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"record of {name}: {type(error).__name__}: {error}") from None
    return n_bits, axis, list(shape), dtype
