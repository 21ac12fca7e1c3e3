"""The way of a model: plan, prepare, checkpoint, a fresh model, a backend's file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Architecture
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palette_core import KMeansPalettizer, load_checkpoint
from palette_core.errors import BackendError, PaletteWarning, PlanError
from palette_core.storage import PackedWeight, palette_sites


@dataclass(frozen=True)
class Arrived:
    """A finalized model out of a checkpoint.

    Attributes:
        model: as it was loaded.
        inputs: to export and to run it with.
        wanted: what it computes, in torch.
        read: names of the palettized weights that this takes, tied ones once; a head that a model
            has and does not use is in no file.
        palettizer: to export it with.
    """

    model: nn.Module
    inputs: dict[str, Any]
    wanted: list[Tensor]
    read: dict[str, PackedWeight]
    palettizer: KMeansPalettizer

    @property
    def given(self) -> list[Tensor]:
        """Inputs that are tensors, in order."""
        return tensors(self.inputs)

    def ignores(self, palette: PackedWeight) -> bool:
        """Return whether the outputs are the same with a table of zeros."""
        kept = palette.lut.clone()
        with torch.no_grad():
            palette.lut.zero_()
            found = tensors(self.model(**self.inputs))
            palette.lut.copy_(kept)
        return all(torch.equal(a, b) for a, b in zip(found, self.wanted, strict=True))


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in nested outputs, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def travel(architecture: Architecture, backend: str, folder: Path, **options: Any) -> Arrived | str:
    """Bring a model to where it can be exported; returns the reason where planning refuses it."""
    model, inputs = architecture.make(), dict(architecture.inputs)
    palettizer = KMeansPalettizer(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PaletteWarning)  # shapes that do not fit stay dense
            palettizer.prepare(inputs, backend=backend, backend_options=options)
    except (BackendError, PlanError) as error:
        return " ".join(str(error).split())
    path = palettizer.export(folder / "m.safetensors", backend="packed")
    fresh = load_checkpoint(path, architecture.make(seed=1))
    with torch.no_grad():
        wanted, packed = tensors(fresh(**inputs)), tensors(model(**inputs))
    assert wanted
    for one, other in zip(wanted, packed, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    return Arrived(fresh, inputs, wanted, weights_read(fresh, inputs), KMeansPalettizer(fresh))


def weights_read(model: nn.Module, inputs: dict[str, Any]) -> dict[str, PackedWeight]:
    """Return the palettes that are decoded in a run, by the name of their weight."""

    class Indices(TorchDispatchMode):
        """Collects where the indices lie that are decoded."""

        def __init__(self) -> None:
            super().__init__()
            self.found: set[int] = set()

        def __torch_dispatch__(self, op: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if op.namespace == "palette_core":
                self.found |= {leaf.data_ptr() for leaf in tensors((args, kwargs))}
            return op(*args, **(kwargs or {}))

    with torch.no_grad(), Indices() as seen:
        model(**inputs)
    return {
        site.name: site.palette
        for site in palette_sites(model)
        if site.palette.indices.data_ptr() in seen.found
    }


def distance(got: Sequence[np.ndarray], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest magnitude of each output."""
    assert len(got) == len(wanted), (len(got), len(wanted))
    gaps = [0.0]
    for one, other in zip(got, (tensor.detach().numpy() for tensor in wanted), strict=True):
        assert one.size == other.size, (one.shape, other.shape)
        given, target = one.reshape(other.shape).astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(target)
        assert np.array_equal(given[~finite], target[~finite], equal_nan=True)
        if finite.any():
            most = np.abs(target[finite]).max() or 1.0
            gaps.append(float(np.abs(given[finite] - target[finite]).max() / most))
    return max(gaps)


def n_weights(model: nn.Module) -> int:
    """Return how many palettized weights a model holds, tied ones once."""
    return len(palette_sites(model))
