"""Files of sensitivities: written whole or not at all, read with every problem listed.

A safetensors file holds one float32 tensor under the name of each palettized weight, and in its
metadata, under ``palette_core_sensitivities``, JSON with the version of the format, of each weight
the shape, the fingerprint, the scale (the largest mean squared gradient) and the number of batches,
and checksums. Files named ``.pt`` or ``.pth`` hold the dictionary that coreai-opt writes with
``torch.save``, keyed by the names that parametrized models give to dense originals
(``layer.parametrizations.weight.original``), and the number of batches as one more tensor, which
coreai-opt does not look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palette_core._common.files import atomic_path, check_place
from palette_core._common.tensor_files import save_file, torch_save
from palette_core.errors import SensitivityError, did_you_mean
from palette_core.storage.checksums import sealed
from palette_core.storage.sensitivity_content import (
    BATCHES,
    FORMAT_VERSION,
    METADATA_KEY,
    TORCH_SUFFIXES,
    read_content,
)
from palette_core.tensors.dtypes import dtype_name
from palette_core.tensors.layout import Shape
from palette_core.tensors.sensitivities import Sensitivity, normalized

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


# --- writing ------------------------------------------------------------------------------------


def save_sensitivities(path: str | Path, sensitivities: Mapping[str, Sensitivity]) -> None:
    """Write sensitivities by tensor name: safetensors, or ``torch.save`` for .pt and .pth.

    Raises:
        OSError: the file cannot be written; what stood there still does.
    """
    path = check_writable(path)
    with atomic_path(path) as temporary:
        if path.suffix in TORCH_SUFFIXES:
            values = {_parametrized_name(n): s.values for n, s in sensitivities.items()}
            counts = {item.batches for item in sensitivities.values()}
            if len(counts) == 1 and None not in counts:
                values[BATCHES] = torch.tensor(counts.pop())
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
    stored = read_content(path)
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


def _parametrized_name(name: str) -> str:
    """Turn ``a.weight`` into ``a.parametrizations.weight.original``."""
    module, _, state = name.rpartition(".")
    return ".".join([*([module] if module else []), "parametrizations", state, "original"])
