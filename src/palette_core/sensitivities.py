"""Files of sensitivities: how much each weight matters to the loss."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from palette_core.errors import SensitivityError, did_you_mean
from palette_core.planning import TensorPlan
from palette_core.spec import dtype_name

_TINY = 1e-12


def load_sensitivities(path: str | Path, plans: Iterable[TensorPlan]) -> dict[str, Tensor]:
    """Read the sensitivities of planned tensors, by name, as stored, on the CPU.

    Takes safetensors files and ``torch.save`` dictionaries (read with ``weights_only``). Keys are
    tensor names, or the names that parametrized models give them
    (``layer.parametrizations.weight.original``). Entries for other tensors are not looked at.

    Raises:
        FileNotFoundError: no such file.
        SensitivityError: unreadable, entries missing, of the wrong shape, NaN, infinite or
            negative; the message lists every problem.
    """
    path = Path(path)
    stored = {_plain_name(key): value for key, value in _read(path).items()}
    problems: list[str] = []
    found: dict[str, Tensor] = {}
    for plan in plans:
        names = [owner.name for owner in plan.owners]
        value = next((stored[name] for name in names if name in stored), None)
        problem = _problem(plan, value, stored)
        if problem:
            problems.append(problem)
        elif value is not None:
            found[plan.name] = value
    if problems:
        raise SensitivityError(f"{path} does not fit the model: {'; '.join(problems)}")
    return found


def normalized(sensitivity: Tensor) -> Tensor:
    """Scale to at most 1, as float32, with tiny values 0; all zeros become ones (plain k-means)."""
    wide = sensitivity.double()
    largest = wide.max()
    if not bool(largest > 0):
        return torch.ones_like(wide, dtype=torch.float32)
    scaled = wide / largest
    return torch.where(scaled < _TINY, 0.0, scaled).float()


def _problem(plan: TensorPlan, value: Tensor | None, stored: dict[str, Tensor]) -> str | None:
    if value is None:
        return f"no entry for {plan.name}{did_you_mean(plan.name, stored)}"
    if tuple(value.shape) != plan.shape:
        return f"{plan.name} has shape {tuple(value.shape)}, expected {plan.shape}"
    if value.dtype.is_complex or value.dtype is torch.bool or value.dtype.itemsize == 1:
        return f"{plan.name} has dtype {dtype_name(value.dtype)}, expected a floating dtype"
    if not bool(torch.isfinite(value).all()):
        return f"{plan.name} has NaN or infinite values"
    if bool((value < 0).any()):
        return f"{plan.name} has negative values, the smallest {value.min().item()}"
    return None


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"no file of sensitivities at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise SensitivityError(f"{path} is not a whole safetensors file: {error}") from error
    # torch.load raises whatever its unpickler meets in a damaged file.
    except Exception as error:
        raise SensitivityError(
            f"{path} is damaged, or neither a safetensors file (suffix .safetensors) nor a "
            f"dictionary of tensors written by torch.save ({type(error).__name__})"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise SensitivityError(f"{path} must hold a dictionary from tensor names to tensors")
    return loaded


def _plain_name(key: str) -> str:
    """Turn ``a.parametrizations.weight.original`` into ``a.weight``."""
    parts = key.split(".")
    if "parametrizations" in parts and parts[-1].startswith("original"):
        at = parts.index("parametrizations")
        return ".".join([*parts[:at], parts[at + 1]])
    return key
