"""Checks of export backends that palettize programs which exist already."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palette_core.plugins import ProgramWeight
from palette_core.plugins.kinds import EXPORT_BACKEND
from palette_core.tensors import PalettizedTensor
from palette_core.testing._backend_models import Layers, inputs_of, reader_of
from palette_core.testing._kit import Subject, check, demand
from palette_core.testing._probes import bits


@check(EXPORT_BACKEND, applies=lambda entry: entry.edits_programs)
def programs(subject: Subject) -> None:
    """A weight of a program that exists is replaced in every bit, and the others stay."""
    reader = reader_of(subject)
    for options in subject.options:
        with tempfile.TemporaryDirectory() as folder:
            _edit(subject, subject.entry.factory(options), reader, Path(folder))


def _edit(subject: Subject, target: Any, reader: Any, folder: Path) -> None:
    model, suffix = Layers(dict.fromkeys(("first", "second"))), subject.entry.suffix
    path = target.export(model, inputs_of(model), folder / f"dense{suffix}", None)
    before = dict(target.read_program(path))
    demand(subject, len(before) > 1, f"read_program finds {len(before)} of 2 dense weights")
    name, *others = before
    values = before[name].values
    lut = values.float().quantile(torch.tensor([0.1, 0.4, 0.6, 0.9])).to(values.dtype)
    codes = (values[..., None] - lut).abs().argmin(-1).to(torch.uint8)
    tensor = PalettizedTensor(codes, lut.reshape(*[1] * values.dim(), 4, 1), 2, 0, values.dtype)
    fresh = target.replace_weights(path, {name: tensor}, folder / f"edited{suffix}")
    after = target.read_program(fresh)
    lost = [each for each in others if not _kept(before[each], after.get(each))]
    demand(subject, not lost, f"replacing {name} has changed {', '.join(lost)}")
    wanted = tensor.decode().float().numpy()
    read = [np.asarray(weight).astype(np.float32) for weight in reader(fresh).values()]
    found = any(each.shape == wanted.shape and (each == wanted).all() for each in read)
    demand(subject, found, f"{name} does not read back as its palettized values")


def _kept(before: ProgramWeight, after: ProgramWeight | None) -> bool:
    return after is not None and bits(before.values) == bits(after.values)
