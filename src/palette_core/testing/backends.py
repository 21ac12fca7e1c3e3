"""Checks of export backends. One conversion serves all that can be seen in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from palette_core import KMeansPalettizer, PalettizationSpec
from palette_core._common.files import size_on_disk
from palette_core.errors import IncompatibleShapeError, PaletteError
from palette_core.operations import installed_operations
from palette_core.planning.choose import lay_out
from palette_core.plugins import Refusal, TensorFacts
from palette_core.plugins.kinds import EXPORT_BACKEND
from palette_core.plugins.stored_forms import DENSE_FORM
from palette_core.storage import palette_sites
from palette_core.storage.pack import pack
from palette_core.testing._backend_models import (
    Layers,
    config_of,
    inputs_of,
    reader_of,
)
from palette_core.testing._conversions import Exported, backend_of, exported, specs_of, split
from palette_core.testing._kit import Subject, check, demand, fail
from palette_core.testing._probes import draw

_KIND = EXPORT_BACKEND
_SPARSE = "sparse"  # whose weights the kit makes
_NEAR_BYTES = 256  # how far a file's size may be from what is declared, and a quarter of that
# Relative rounding of decoded weights, by what the file holds: a table, a scale and their
# product are each rounded once.
_ROUNDING = {2: 2.0**-9, 4: 2.0**-22, 8: 2.0**-22}


# --- planning -------------------------------------------------------------------------------------


@check(_KIND)
def refusals(subject: Subject) -> None:
    """For any tensor, refuses gives None or a reason, the same again; what it proposes it takes."""
    for options in subject.options:
        for facts in _facts(subject):
            first: object = backend_of(subject, options).check_support(facts)
            again = backend_of(subject, options).check_support(facts)
            demand(subject, first == again, f"answers {first!r} and then {again!r} for {facts}")
            if first is None:
                continue
            if not isinstance(first, Refusal) or not first.reason.strip():
                fail(subject, f"answers {first!r}, expected None or a Refusal with a reason")
            if first.instead is not None:
                axis = installed_operations().channel_axis(facts.op_type, facts.shape)
                layout = lay_out(facts.shape, first.instead, axis)
                other = TensorFacts(
                    facts.name, facts.shape, facts.dtype, facts.op_type, layout, first.instead
                )
                second = backend_of(subject, options).check_support(other)
                demand(subject, second is None, f"refuses what it proposes itself: {second!r}")


def _facts(subject: Subject) -> Iterator[TensorFacts]:
    shapes = {"linear": (32, 64), "conv2d": (32, 8, 3, 3), "conv1d": (32, 8, 3)}
    shapes |= {"conv_transpose2d": (16, 32, 3, 3), "embedding": (64, 32), "": (4, 4, 4, 4, 4)}
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    specs = list(specs_of(subject).values())
    for (op_type, shape), dtype, spec in product(shapes.items(), dtypes, specs):
        try:
            layout = lay_out(shape, spec, installed_operations().channel_axis(op_type, shape))
        except IncompatibleShapeError:
            continue
        yield TensorFacts("layer.weight", shape, dtype, op_type or None, layout, spec)


@check(_KIND)
def accepted(subject: Subject) -> None:
    """Any spec that planning accepts is exported, and the path returned is that of a file.

    Beside it stand the files that the entry declares in ``beside``, and no others are written.
    """
    for options in subject.options:
        made = exported(subject, options)
        if made.error is not None:
            raise made.error
        demand(subject, made.exists, f"export returned {made.path}, where nothing is")
        suffix = subject.entry.suffix
        demand(subject, made.path.suffix == suffix, f"export returned {made.path}, not a {suffix}")


@check(_KIND)
def refused(subject: Subject) -> None:
    """A refused spec cannot be lowered: that raises, or what is read back is not equal."""
    for options in subject.options:
        for name, spec in split(subject, options)[1].items():
            with tempfile.TemporaryDirectory() as folder:
                held = _lowers(subject, options, {name: spec}, Path(folder))
            demand(subject, not held, f"refuses {spec!r}, and yet writes it as it should be")


def _lowers(
    subject: Subject, options: BaseModel, specs: dict[str, PalettizationSpec], folder: Path
) -> bool:
    """Return whether the backend writes a refused layer right when planning is passed by."""
    model = Layers(specs)
    inputs = inputs_of(model)
    prepared: Any = KMeansPalettizer(model, config_of(specs)).prepare(inputs)
    weights = {f"{n}.weight": prepared.get_submodule(n).weight.detach().clone() for n in specs}
    target = backend_of(subject, options)
    read = reader_of(subject)
    try:
        sites = palette_sites(prepared)
        final = target.finalize(
            prepared, pack(sites, (site.palette.palettized() for site in sites))
        )
        path = target.export(final, inputs, folder / f"m{subject.entry.suffix}", None)
        return not differences(weights, read(path))
    except Exception:
        return False


# --- what is written ------------------------------------------------------------------------------


@check(_KIND)
def read_back(subject: Subject) -> None:
    """Weights read from the file equal those that the core decodes, but for one rounding or two."""
    reader_of(subject)
    for options in subject.options:
        _demand_equal(subject, exported(subject, options))


@check(_KIND, applies=lambda entry: _SPARSE in (entry.stored_forms or (_SPARSE,)))
def zeros(subject: Subject) -> None:
    """Weights in the stored form ``sparse`` are exactly zero in the file where they were zero."""
    reader_of(subject)
    for options in subject.options:
        made = exported(subject, options)
        if made.error is not None:
            raise PaletteError(f"export failed: {made.error}") from made.error
        for name, weight in made.weights.items():
            if name.startswith("sparse") and made.read is not None and name in made.read:
                lost = int((np.asarray(made.read[name])[weight.numpy() == 0] != 0).sum())
                demand(subject, not lost, f"{name}: {lost} zeros are something else in the file")


@check(_KIND, applies=lambda entry: _SPARSE in (entry.stored_forms or ()))
def sparse_overhead(subject: Subject) -> None:
    """Weights in the stored form ``sparse`` take as many bytes more as ``sparse_overhead`` says."""
    for options in subject.options:
        declared = backend_of(subject, options).sparse_overhead
        found = _sparse_overhead(subject, options)
        demand(
            subject,
            abs(found - declared) <= _NEAR_BYTES + declared // 4,
            f"a sparse weight takes {found} bytes beside its indices and mask, more than a dense "
            f"one; sparse_overhead says {declared}",
        )


def _sparse_overhead(subject: Subject, options: BaseModel) -> int:
    """Measure it, by the files of one layer in either form."""
    sizes = []
    for form in (_SPARSE, DENSE_FORM):
        layer = nn.Linear(64, 64, bias=False)
        with torch.no_grad():
            layer.weight.copy_(draw(64, 64)).view(-1)[::2] = 0.0
        model = nn.Sequential(layer).eval()
        spec = PalettizationSpec(n_bits=4, sparsity_detection_threshold=0.3, stored_form=form)
        palettizer = KMeansPalettizer(
            model, config_of({"0": spec if form == _SPARSE else spec.stored_as(form)})
        )
        inputs = (torch.ones(1, 64),)
        how = {"backend": subject.entry.name, "backend_options": options.model_dump(mode="json")}
        with tempfile.TemporaryDirectory() as folder:
            palettizer.prepare(inputs, **how)
            palettizer.export(Path(folder) / f"m{subject.entry.suffix}", inputs, **how)
            sizes.append(size_on_disk(Path(folder)))
    # Half of the indices less, four bits each, and a bit for each weight more: less by a quarter.
    return sizes[0] - sizes[1] + 64 * 64 // 8


@check(_KIND, applies=lambda entry: entry.supports_mmap)
def mapped(subject: Subject) -> None:
    """Weights that finalize has mapped from files are exported as those in memory are."""
    reader_of(subject)
    for options in subject.options:
        _demand_equal(subject, exported(subject, options, mapped=True))


@check(_KIND)
def finalized(subject: Subject) -> None:
    """The finalized model gives the outputs of the prepared one."""
    for options in subject.options:
        before, after = exported(subject, options).outputs
        close = torch.allclose(before, after, rtol=1e-4, atol=1e-5)
        demand(subject, close, f"outputs move by {float((before - after).abs().max()):.3g}")


@check(_KIND)
def model_unchanged(subject: Subject) -> None:
    """Exporting leaves the finalized model and the example inputs as they were."""
    for options in subject.options:
        changed = exported(subject, options).changed
        demand(subject, not changed, f"export changed {', '.join(changed)}")


def _demand_equal(subject: Subject, made: Exported) -> None:
    if made.error is not None:
        raise PaletteError(f"export failed: {made.error}") from made.error
    wrong = differences(made.weights, made.read or {})
    demand(subject, not wrong, f"read back: {'; '.join(wrong)}")


def differences(wanted: dict[str, Tensor], read: Any) -> list[str]:
    """Return one sentence per weight that is not what the core decodes."""
    wrong = []
    for name, weight in wanted.items():
        if name not in read:
            wrong.append(f"{name} is missing; there are {', '.join(sorted(read)) or 'none'}")
            continue
        got, right = np.asarray(read[name]), weight.double().numpy()
        if got.shape != right.shape:
            wrong.append(f"{name} has shape {got.shape}, expected {right.shape}")
            continue
        gap = np.abs(got.astype(np.float64) - right)
        # The last term is where float16 has no more digits.
        most = np.abs(right) * _ROUNDING.get(got.dtype.itemsize, 0.0) + 2.0**-24
        if not (gap <= most).all():
            wrong.append(
                f"{name} is off by up to {gap.max():.3g}, {int((gap > most).sum())} weights"
            )
    return wrong
