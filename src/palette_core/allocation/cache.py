"""Predictions kept in a file, each under all that it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palette_core._common.bounded_json import read_json
from palette_core._common.files import atomic_path, check_place
from palette_core._common.pytrees import objects_in
from palette_core._common.warned import warn
from palette_core.errors import AllocationError
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import get_catalog

_VERSION = 2
_FIRST = json.dumps({"palette_core_losses": _VERSION}).encode() + b"\n"
_LONGEST = 4096  # bytes of a line; ours have less than 300
_CHUNK = 1 << 24  # elements that are brought from a device at once


class LossFile:
    """Bits and losses by key, in a file of JSON lines or, without a path, nowhere.

    Every line has a checksum. One that is damaged, or that a killed process left half written, is
    as if it were not there, with a warning.

    Raises:
        AllocationError: the file is something else.
        OSError: nothing can be written there.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._values: dict[str, tuple[int, float]] = {}
        if path is None:
            return
        check_place(path, is_file=True)
        if path.exists() and path.stat().st_size:
            self._read(path)

    def get(self, key: str) -> tuple[int, float] | None:
        """Return bits and loss, if they are known."""
        return self._values.get(key)

    def add(self, found: Mapping[str, tuple[int, float]]) -> None:
        """Add bits and losses, and append them to the file.

        Raises:
            OSError: they cannot be written.
        """
        self._values.update(found)
        if self._path is None or not found:
            return
        lines = b"".join(_line(key, *value) for key, value in found.items())
        if self._path.exists() and self._path.stat().st_size:
            _append(self._path, lines)
            return
        with atomic_path(self._path) as temporary:
            temporary.write_bytes(_FIRST + lines)

    def _read(self, path: Path) -> None:
        damaged = 0
        with path.open("rb") as file:
            first = file.readline(_LONGEST)
            if first != _FIRST:
                raise AllocationError(
                    f"{path} is no cache of predicted losses of version {_VERSION}; delete it, or "
                    "name another"
                )
            while line := file.readline(_LONGEST):
                found = _value(line)
                if found is None:
                    damaged += bool(line.strip())
                else:
                    self._values[found[0]] = found[1:]
        if damaged:
            warn(
                f"{path}: {damaged} lines are damaged; what they held is predicted again",
                stacklevel=5,  # whoever called allocate()
            )


def _line(key: str, bits: int, loss: float) -> bytes:
    record = {"key": key, "bits": bits, "loss": loss}
    return json.dumps(record | {"crc32": _checksum(key, bits, loss)}).encode() + b"\n"


def _value(line: bytes) -> tuple[str, int, float] | None:
    """Return key, bits and loss of a line, or None where it is damaged."""
    try:
        record = read_json(line)
        key, bits, loss = record["key"], record["bits"], record["loss"]
        right = record["crc32"] == _checksum(key, bits, loss)
    except (ValueError, TypeError, KeyError):
        return None
    usable = type(key) is str and type(bits) is int and type(loss) is float
    return (key, bits, loss) if right and usable and bits > 0 and loss >= 0 else None


def _checksum(key: str, bits: int, loss: float) -> str:
    return f"{zlib.crc32(f'{key} {bits} {loss!r}'.encode()):08x}"


def _append(path: Path, lines: bytes) -> None:
    """Add lines at the end of a file; where that fails, it is as before."""
    with path.open("r+b") as file:
        size = file.seek(-1, os.SEEK_END) + 1
        start = b"" if file.read(1) == b"\n" else b"\n"  # a killed process has left half a line
    with path.open("ab") as file:
        try:
            file.write(start + lines)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


def key_of(plan: TensorPlan, *seen: Any) -> str:
    """Return what tells one prediction from all others.

    Args:
        plan: the candidate.
        seen: whatever else the prediction depends on, as JSON values.
    """
    parts = [
        plan.name,
        plan.spec.model_dump(mode="json"),
        [plan.algorithm, plan.lut_quantizer, plan.seed, plan.resolution],
        plan.vector_kmeans_config and plan.vector_kmeans_config.model_dump(mode="json"),
        _made_by(plan),
        *seen,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _made_by(plan: TensorPlan) -> list[str]:
    """Return the distributions, with their versions, that cluster a plan."""
    catalog = get_catalog()
    found = [str(catalog.clusterers.find(plan.algorithm).distribution)]
    if plan.lut_quantizer is not None:
        found.append(str(catalog.lut_quantizers.find(plan.lut_quantizer).distribution))
    return found


def runs_digest(model: nn.Module, batches: Sequence[Any]) -> str:
    """Return what tells runs of a model on batches from other runs.

    All parameters and buffers count, those that no checkpoint has too, and what modules say of
    themselves (classes, settings).
    """
    digest = hashlib.blake2b(digest_size=32)
    # Functions that hang in a module are printed with addresses, which mean nothing.
    digest.update(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model)).encode())
    for tensors in (model.named_parameters(), model.named_buffers()):
        for name, tensor in tensors:
            digest.update(name.encode() + b"\0")
            _add_tensor(digest, tensor)
    _add(digest, list(batches))
    return digest.hexdigest()


def _add(digest: Any, value: Any, inside: tuple[int, ...] = ()) -> None:
    if isinstance(value, Tensor):
        _add_tensor(digest, value)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        digest.update(f"array of {value.dtype}{value.shape};".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping of {len(value)};".encode())
        for key, item in value.items():
            digest.update(str(key).encode() + b"\0")
            _add(digest, item, inside)
    elif isinstance(value, (tuple, list)):
        digest.update(f"sequence of {len(value)};".encode())
        for item in value:
            _add(digest, item, inside)
    elif id(value) not in inside:
        # What objects print may be cut short, or an address.
        parts = list(objects_in(value))
        what = type(value).__qualname__ if parts else repr(value)
        digest.update(f"{what} of {len(parts)};".encode())
        for item in parts:
            _add(digest, item, (*inside, id(value)))


def _add_tensor(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
    if tensor.is_meta:
        return
    flat = tensor.detach().reshape(-1)
    for at in range(0, flat.numel(), _CHUNK):
        chunk = flat[at : at + _CHUNK].cpu().contiguous()
        digest.update(chunk.view(torch.uint8).numpy())
