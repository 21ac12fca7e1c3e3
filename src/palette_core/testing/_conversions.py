"""One conversion of a model with a layer for every spec, for all checks of an export backend."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from palette_core import KMeansPalettizer, PalettizationSpec
from palette_core.testing._backend_models import Layers, config_of, inputs_of, known_specs
from palette_core.testing._kit import Subject, demand
from palette_core.testing._probes import bits


@dataclass
class Exported:
    """Result of one conversion."""

    weights: dict[str, Tensor]
    outputs: tuple[Tensor, Tensor]  # of the prepared and of the finalized model
    changed: list[str] = field(default_factory=list)
    path: Path = Path()
    exists: bool = False
    read: dict[str, Any] | None = None
    error: Exception | None = None


def backend_of(subject: Subject, options: BaseModel) -> Any:
    """Make the backend."""
    return subject.entry.factory(options)


def specs_of(subject: Subject) -> dict[str, PalettizationSpec]:
    """Return the specs that go with stored forms of the backend, by name."""
    return known_specs(subject.entry.stored_forms, subject.specs)


def split(
    subject: Subject, options: BaseModel
) -> tuple[dict[str, PalettizationSpec], dict[str, PalettizationSpec]]:
    """Return the known specs by layer: those that the backend takes, and those that it refuses."""
    specs = specs_of(subject)
    model = Layers(specs)
    plan = KMeansPalettizer(model, config_of(specs)).make_plan(inputs_of(model))
    target = backend_of(subject, options)
    refused = {t.name for t in plan if target.check_support(t.facts) is not None}
    taken = {n: s for n, s in specs.items() if f"{n}.weight" not in refused}
    return taken, {n: s for n, s in specs.items() if n not in taken}


def exported(subject: Subject, options: BaseModel, *, mapped: bool = False) -> Exported:
    """Convert a model with a layer for every spec that is taken; once for all checks."""
    key = f"{options!r} {mapped}"
    if key not in subject.kept:
        taken, _ = split(subject, options)
        demand(subject, taken, f"refuses every spec of the kit with options {options!r}")
        with tempfile.TemporaryDirectory() as folder:
            subject.kept[key] = _export(subject, options, taken, Path(folder), mapped)
    made: Exported = subject.kept[key]
    return made


def _export(
    subject: Subject,
    options: BaseModel,
    specs: dict[str, PalettizationSpec],
    folder: Path,
    mapped: bool,
) -> Exported:
    model = Layers(specs)
    inputs = inputs_of(model)
    palettizer = KMeansPalettizer(model, config_of(specs))
    how: dict[str, Any] = {
        "backend": subject.entry.name,
        "backend_options": options.model_dump(mode="json"),
    }
    prepared: Any = palettizer.prepare(inputs, **how)
    weights = {f"{n}.weight": prepared.get_submodule(n).weight.detach().clone() for n in specs}
    with torch.no_grad():
        before = prepared(*inputs).clone()
        # A model that is dense again is written from the prepared one.
        source = copy.deepcopy(prepared) if subject.entry.leaves_dense else None
        final = palettizer.finalize(mmap_dir=folder / "mapped" if mapped else None, **how)
        made = Exported(weights, (before, final(*inputs).clone()))
    try:
        with _watched(type(backend_of(subject, options)), made.changed):
            made.path = palettizer.export(
                folder / f"m{subject.entry.suffix}", inputs, model=source, **how
            )
        made.exists = made.path.exists()
        if made.exists and subject.reader is not None:
            made.read = {k: np.array(v) for k, v in subject.reader(made.path).items()}
    except Exception as error:
        made.error = error
    return made


@contextlib.contextmanager
def _watched(cls: Any, changed: list[str]) -> Iterator[None]:
    """Note what ``export`` of a class changes, which the palettizer puts back afterwards."""
    export = cls.export

    def watched(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        state, given = _state(model), [bits(part) for part in inputs]
        try:
            return export(self, model, inputs, *more)
        finally:
            after = _state(model)
            changed.extend(n for n in {**state, **after} if state.get(n) != after.get(n))
            changed.extend(["the example inputs"] * (given != [bits(part) for part in inputs]))

    with patch.object(cls, "export", watched):
        yield


def _state(model: Any) -> dict[str, bytes]:
    return {name: bits(value) for name, value in model.state_dict().items()}
