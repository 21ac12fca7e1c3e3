"""Files of sensitivities: written whole or not at all, read with every problem listed.

A safetensors file holds one float32 tensor under the name of each palettized weight, and in its
metadata, under ``palette_core_sensitivities``, JSON with the version of the format, of each weight
the shape, the fingerprint, the scale (the largest mean squared gradient) and the number of batches,
and checksums. Files
named ``.pt`` or ``.pth`` hold the dictionary that coreai-opt writes with ``torch.save``, keyed by
the names that parametrized models give to dense originals
(``layer.parametrizations.weight.original``), and the number of batches as one more tensor, which
coreai-opt does not look at.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palette_core._common.bounded_json import read_json
from palette_core._common.files import atomic_path, check_place
from palette_core._common.tensor_files import save_file, torch_save
from palette_core._common.warned import warn
from palette_core.errors import SensitivityError, did_you_mean
from palette_core.storage.checksums import CHECKSUMS, checksums_of, difference, is_sealed, sealed
from palette_core.tensors.dtypes import dtype_name
from palette_core.tensors.layout import Shape
from palette_core.tensors.sensitivities import Sensitivity, normalized

FORMAT_VERSION = 2
_WITHOUT_CHECKSUMS = 1  # the version before
METADATA_KEY = "palette_core_sensitivities"
_BATCHES = f"{METADATA_KEY}.batches"
_TORCH_SUFFIXES = (".pt", ".pth")
_IS_FOLDER = 0x10  # among the attributes of a part of a zip archive
_INTEGERS = (torch.int16, torch.int32, torch.int64)  # the dtypes that torch computes with


@dataclass(frozen=True)
class WantedTensor:
    """A tensor whose sensitivities are looked for in a file.

    Attributes:
        names: every name of it, the first one first.
        shape: its shape.
        fingerprint: of its values, `palette_core.tensors.sensitivities.fingerprint`.
    """

    names: tuple[str, ...]
    shape: Shape
    fingerprint: str

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]


@dataclass(frozen=True)
class _File:
    """Content of a file, by plain tensor names."""

    values: dict[str, Tensor]
    fingerprints: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)


# --- writing ------------------------------------------------------------------------------------


def save_sensitivities(path: str | Path, sensitivities: Mapping[str, Sensitivity]) -> None:
    """Write sensitivities by tensor name: safetensors, or ``torch.save`` for .pt and .pth.

    Raises:
        OSError: the file cannot be written; what stood there still does.
    """
    path = check_writable(path)
    with atomic_path(path) as temporary:
        if path.suffix in _TORCH_SUFFIXES:
            values = {_parametrized_name(n): s.values for n, s in sensitivities.items()}
            counts = {item.batches for item in sensitivities.values()}
            if len(counts) == 1 and None not in counts:
                values[_BATCHES] = torch.tensor(counts.pop())
            torch_save(values, temporary)
            return
        records = {
            name: {
                "shape": list(item.values.shape),
                "fingerprint": item.fingerprint,
                "scale": item.scale,
                "batches": item.batches,
            }
            for name, item in sensitivities.items()
        }
        header = {"version": FORMAT_VERSION, "tensors": records}
        tensors = {name: item.values.contiguous() for name, item in sensitivities.items()}
        save_file(tensors, temporary, metadata={METADATA_KEY: sealed(header, tensors)})


def check_writable(path: str | Path) -> Path:
    """Try the place of a file of sensitivities, before any work.

    Raises:
        OSError: its folder does not exist or cannot be written to, or ``path`` is a folder.
    """
    path = Path(path)
    check_place(path, is_file=True)
    return path


# --- reading ------------------------------------------------------------------------------------


def load_sensitivities(
    path: str | Path,
    wanted: Iterable[WantedTensor],
    *,
    trust: bool = False,
) -> dict[str, Sensitivity]:
    """Read the sensitivities of tensors, by their first names, normalized, on the CPU.

    Entries for other tensors are not looked at.

    Args:
        path: of a safetensors file, or of a ``torch.save`` dictionary, which is read with
            ``weights_only``. Keys are tensor names, or the names that parametrized models give
            them. A tied weight is found under any of its names.
        wanted: the tensors.
        trust: take what was measured on other weights of the same shapes.

    Raises:
        FileNotFoundError: no such file.
        SensitivityError: unreadable, entries missing, of the wrong shape, NaN, infinite or
            negative, or measured on other weights; the message lists every problem.
    """
    path = Path(path)
    stored = _read(path)
    problems: list[str] = []
    others: list[str] = []
    found: dict[str, Sensitivity] = {}
    for tensor in wanted:
        name = next((each for each in tensor.names if each in stored.values), None)
        problem = _problem(tensor, name, stored.values)
        if problem or name is None:
            problems.append(problem)
            continue
        if not trust and stored.fingerprints.get(name, tensor.fingerprint) != tensor.fingerprint:
            others.append(tensor.name)
        values = normalized(stored.values.pop(name))
        found[tensor.name] = Sensitivity(
            values, tensor.fingerprint, stored.scales.get(name), stored.batches.get(name)
        )
    if others:
        problems.append(_of_other_weights(others, len(found)))
    if problems:
        raise SensitivityError(f"{path} does not fit the model: {'; '.join(problems)}")
    return found


def _of_other_weights(names: list[str], of: int) -> str:
    which = "every weight" if len(names) == of else ", ".join(names)
    return (
        f"measured on other values of {which}; calibrate the model as it is now, or take them "
        "all the same with prepare(..., trust_sensitivities=True)"
    )


def _problem(tensor: WantedTensor, name: str | None, stored: Mapping[str, Tensor]) -> str:
    if name is None:
        return f"no entry for {tensor.name}{did_you_mean(tensor.name, stored)}"
    value = stored[name]
    if not _is_plain(value):
        return f"{tensor.name} is nested, sparse, quantized or without values, expected plain ones"
    if tuple(value.shape) != tensor.shape:
        return f"{tensor.name} has shape {tuple(value.shape)}, expected {tensor.shape}"
    if not (value.dtype in _INTEGERS or value.dtype.is_floating_point) or value.dtype.itemsize == 1:
        return f"{tensor.name} has dtype {dtype_name(value.dtype)}, expected a floating dtype"
    return _unfit_values(tensor.name, value)


def _is_plain(value: Tensor) -> bool:
    return not (value.is_nested or value.is_meta or value.is_quantized) and (
        value.layout is torch.strided
    )


def _unfit_values(name: str, value: Tensor) -> str:
    if not bool(torch.isfinite(value).all()):
        return f"{name} has NaN or infinite values"
    if bool((value < 0).any()):
        return f"{name} has negative values, the smallest {value.min().item()}"
    return ""


def _read(path: Path) -> _File:
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
    counted = values.pop(_BATCHES, None)
    if counted is None:
        return _File(values)
    try:
        count = _count(counted.item())
    except (ValueError, RuntimeError) as error:
        raise SensitivityError(f"{path}: {_BATCHES} is no number of batches: {error}") from None
    return _File(values, batches=dict.fromkeys(values, count))


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
    if path.suffix in (".safetensors", *_TORCH_SUFFIXES):
        return path.suffix == ".safetensors"
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] != b"PK" and start[:1] != b"\x80"  # a zip archive, a pickle


def _read_safetensors(path: Path) -> _File:
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
    return _File(values, fingerprints, scales, batches)


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


# --- names --------------------------------------------------------------------------------------


def _plain_name(key: str) -> str:
    """Turn ``a.parametrizations.weight.original`` into ``a.weight``."""
    parts = key.split(".")
    if "parametrizations" in parts and parts[-1].startswith("original"):
        at = parts.index("parametrizations")
        return ".".join([*parts[:at], parts[at + 1]])
    return key


def _parametrized_name(name: str) -> str:
    """Turn ``a.weight`` into ``a.parametrizations.weight.original``."""
    module, _, state = name.rpartition(".")
    return ".".join([*([module] if module else []), "parametrizations", state, "original"])
