"""Checks of export backends that write files of several functions."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from palette_core import ExportFunction, KMeansPalettizer, PalettizationSpec
from palette_core.errors import BackendError
from palette_core.plugins.kinds import EXPORT_BACKEND
from palette_core.testing._backend_models import Layers, config_of, inputs_of, reader_of
from palette_core.testing._kit import Subject, check, demand
from palette_core.testing.backends import differences


@check(EXPORT_BACKEND, applies=lambda entry: entry.takes_functions)
def functions(subject: Subject) -> None:
    """Functions of one model share its weights, by its names, and unknown names are refused."""
    reader = reader_of(subject)
    for options in subject.options:
        specs = {"first": PalettizationSpec(n_bits=4), "second": PalettizationSpec(n_bits=2)}
        model = Layers(specs)
        inputs = inputs_of(model)
        layers: dict[str, Any] = {f"{n}.weight": model.get_submodule(n) for n in specs}
        palettizer = KMeansPalettizer(model, config_of(specs))
        how: dict[str, Any] = {
            "backend": subject.entry.name,
            "backend_options": options.model_dump(mode="json"),
        }
        palettizer.prepare(inputs, **how)
        wanted = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        asked = {"one": ExportFunction(inputs), "two": ExportFunction(inputs, input_names=("y",))}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"m{subject.entry.suffix}")
            _refused(subject, palettizer, path, functions=asked, **how)
            palettizer.export(path, functions=asked, output_names=("z",), **how)
            wrong = differences(wanted, dict(reader(path)))
        demand(subject, not wrong, f"of two functions, read back: {'; '.join(wrong)}")


def _refused(subject: Subject, palettizer: KMeansPalettizer, path: Path, **how: Any) -> None:
    try:
        palettizer.export(path, input_names={"nowhere": "x"}, **how)
    except BackendError as error:
        told = "nowhere" in str(error)
        demand(subject, told, f"refuses an unknown name without naming it: {error}")
    else:
        demand(subject, False, "takes a name for an input that no function has")
