"""Predictions kept in a file, each under all that it depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palette_core._common.bounded_json import read_json
from palette_core._common.files import atomic_path
from palette_core.errors import AllocationError
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import get_catalog

_VERSION = 1
_CHUNK = 1 << 24  # elements that are brought from a device at once


class LossFile:
    """Bits and losses by key, in a JSON file or, without a path, nowhere.

    Raises:
        AllocationError: the file is damaged, or something else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.values: dict[str, tuple[int, float]] = {}
        if path is None or not path.exists():
            return
        try:
            stored = read_json(path.read_bytes())
            if stored["version"] != _VERSION:
                raise ValueError(f"version {stored['version']!r}")
            self.values = {k: (int(b), float(x)) for k, (b, x) in stored["losses"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise AllocationError(
                f"{path} is no cache of predicted losses ({error}); delete it, or name another"
            ) from None

    def save(self) -> None:
        """Write the file, if there is one."""
        if self._path is None:
            return
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps({"version": _VERSION, "losses": self.values}))


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


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        _add_tensor(digest, value)
    elif isinstance(value, Mapping):
        digest.update(f"mapping of {len(value)};".encode())
        for key, item in value.items():
            digest.update(str(key).encode() + b"\0")
            _add(digest, item)
    elif isinstance(value, (tuple, list)):
        digest.update(f"sequence of {len(value)};".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode() + b"\0")


def _add_tensor(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
    if tensor.is_meta:
        return
    flat = tensor.detach().reshape(-1)
    for at in range(0, flat.numel(), _CHUNK):
        chunk = flat[at : at + _CHUNK].cpu().contiguous()
        digest.update(chunk.view(torch.uint8).numpy())
