"""Content of a file of sensitivities; `sensitivity_files` describes the formats."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palette_core._common.bounded_json import read_json
from palette_core._common.warned import warn
from palette_core.errors import SensitivityError
from palette_core.storage.checksums import CHECKSUMS, checksums_of, difference, is_sealed

FORMAT_VERSION = 2
_WITHOUT_CHECKSUMS = 1  # the version before
METADATA_KEY = "palette_core_sensitivities"
BATCHES = f"{METADATA_KEY}.batches"
TORCH_SUFFIXES = (".pt", ".pth")
_IS_FOLDER = 0x10  # among the attributes of a part of a zip archive


@dataclass(frozen=True)
class Content:
    """Content of a file, by plain tensor names."""

    values: dict[str, Tensor]
    fingerprints: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)


def read_content(path: Path) -> Content:
    """Read a file of either format.

    Raises:
        FileNotFoundError: no such file.
        SensitivityError: unreadable or damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file of sensitivities at {path}")
    if path.is_dir():
        raise SensitivityError(f"{path} is a folder, expected a file of sensitivities")
    if _is_safetensors(path):
        return _read_safetensors(path)
    try:
        _check_archive(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except SensitivityError:
        raise
    # torch.load raises whatever its unpickler meets in a damaged file.
    except Exception as error:
        raise SensitivityError(
            f"{path} is damaged, or neither a safetensors file (suffix .safetensors) nor a "
            f"dictionary of tensors written by torch.save ({type(error).__name__})"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise SensitivityError(f"{path} must hold a dictionary from tensor names to tensors")
    values = {_plain_name(str(key)): value for key, value in loaded.items()}
    counted = values.pop(BATCHES, None)
    if counted is None:
        return Content(values)
    try:
        count = _count(counted.item())
    except (ValueError, RuntimeError) as error:
        raise SensitivityError(f"{path}: {BATCHES} is no number of batches: {error}") from None
    return Content(values, batches=dict.fromkeys(values, count))


def _check_archive(path: Path) -> None:
    """Compare what ``torch.save`` has written with its checksums, which ``torch.load`` does not.

    Raises:
        SensitivityError: something is damaged.
    """
    if not zipfile.is_zipfile(path):
        return  # a pickle of older versions of torch, without checksums
    with zipfile.ZipFile(path) as archive:
        odd = [item.filename for item in archive.infolist() if not _as_saved(item)]
        damaged = odd[0] if odd else archive.testzip()
    if damaged is not None:
        raise SensitivityError(f"{path} is damaged: its part {damaged} is not what was written")


def _as_saved(part: zipfile.ZipInfo) -> bool:
    """Return whether a part is a file as it is; of a folder, ``torch.load`` reads no bytes."""
    return part.compress_type == zipfile.ZIP_STORED and not part.external_attr & _IS_FOLDER


def _is_safetensors(path: Path) -> bool:
    if path.suffix in (".safetensors", *TORCH_SUFFIXES):
        return path.suffix == ".safetensors"
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] != b"PK" and start[:1] != b"\x80"  # a zip archive, a pickle


def _read_safetensors(path: Path) -> Content:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            fingerprints, scales, batches, checksums = _records(path, metadata)
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise SensitivityError(f"{path} is not a whole safetensors file: {error}") from error
    if checksums is None and METADATA_KEY in metadata:
        warn(
            f"{path} was written without checksums, so damage to it may not show",
            stacklevel=2,
        )
    for name, tensor in found.items():
        problem = "" if checksums is None else difference(name, tensor, checksums)
        if problem:
            raise SensitivityError(f"{path}: {problem}")
    values = {_plain_name(name): tensor for name, tensor in found.items()}
    return Content(values, fingerprints, scales, batches)


_Records = tuple[dict[str, str], dict[str, float], dict[str, int], Mapping[str, str] | None]


def _records(path: Path, metadata: Mapping[str, str]) -> _Records:
    """Return fingerprints, scales, batches and checksums; none of files of another program."""
    damaged = f"{path}: its {METADATA_KEY!r} metadata is damaged"
    if METADATA_KEY not in metadata:
        if any(map(_is_ours, metadata.values())):
            raise SensitivityError(f"{damaged}: it goes by another name")
        return {}, {}, {}, None
    text = metadata[METADATA_KEY]
    try:
        is_sealed(text)
        header: Any = read_json(text)
        version = header["version"]
        checksums = checksums_of(header, text) if version == FORMAT_VERSION else None
        if version not in (FORMAT_VERSION, _WITHOUT_CHECKSUMS):
            raise SensitivityError(
                f"{path} has format version {version!r}; this palette_core reads {FORMAT_VERSION} "
                f"and {_WITHOUT_CHECKSUMS}"
            )
        records = {_plain_name(name): record for name, record in header["tensors"].items()}
        return (
            {name: str(record["fingerprint"]) for name, record in records.items()},
            {n: float(r["scale"]) for n, r in records.items() if r.get("scale") is not None},
            {n: _count(r["batches"]) for n, r in records.items() if r.get("batches") is not None},
            checksums,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SensitivityError):
            raise
        raise SensitivityError(f"{damaged}: {type(error).__name__}: {error}") from None


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"batches is {value!r}, expected a number of at least 1")
    return value


def _is_ours(text: str) -> bool:
    return '"fingerprint":' in text and CHECKSUMS in text


def _plain_name(key: str) -> str:
    """Turn ``a.parametrizations.weight.original`` into ``a.weight``."""
    parts = key.split(".")
    if "parametrizations" in parts and parts[-1].startswith("original"):
        at = parts.index("parametrizations")
        return ".".join([*parts[:at], parts[at + 1]])
    return key
