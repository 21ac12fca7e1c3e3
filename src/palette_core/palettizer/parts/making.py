"""Parts to write, and what is to be told about them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from palette_core.errors import BackendError, PaletteWarning
from palette_core.model import ExampleInputs
from palette_core.palettizer.parts.flows import Flow, record_parts
from palette_core.plugins.export_requests import ExportFunction, ExportPart
from palette_core.storage.sites import palette_sites


@dataclass
class Parts:
    """Parts to write, each a function, and what is to be told about them.

    Attributes:
        functions: by name; each with its module and inputs.
        flows: by part, where each of its inputs comes from; of parts named by modules.
        copies: weights that several files hold: by name, those parts and its bytes in one.
        left_out: names of weights that no file holds.
    """

    functions: dict[str, ExportFunction]
    flows: dict[str, dict[str, Flow | None]] = field(default_factory=dict)
    copies: dict[str, tuple[list[str], int]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def make_parts(
    parts: Mapping[str, Any], model: nn.Module, example_inputs: ExampleInputs | None
) -> Parts:
    """Return the parts of a finalized model, run once where they are named by modules.

    Raises:
        BackendError: as of `record_parts`, or there are no inputs to run it on.
    """
    named = {name: part for name, part in parts.items() if isinstance(part, ExportPart)}
    if named and example_inputs is None:
        raise BackendError(
            f"part {next(iter(named))!r} is named by modules, whose inputs are found by running "
            "the model; give example_inputs"
        )
    paths = {name: list(part.modules) for name, part in named.items()}
    recorded = record_parts(model, paths, example_inputs) if example_inputs is not None else {}
    made = Parts({})
    for name, part in parts.items():
        if name not in recorded:
            made.functions[name] = part
            continue
        found = recorded[name]
        made.flows[name] = found.flows
        made.functions[name] = ExportFunction(
            found.inputs, part.dynamic_shapes, found.module, part.input_names,
            part.output_names, part.state_names,
        )  # fmt: skip
    _count(made, model)
    return made


def warn_of(parts: Parts) -> None:
    """Warn of what a user may not expect: copies, weights in no file, inputs that no file computes.

    Warns:
        PaletteWarning: one for each kind.
    """
    for weight, (names, size) in parts.copies.items():
        more = len(names) - 1
        _warn(
            f"{weight} is in the files of {', '.join(names[:-1])} and {names[-1]}: "
            f"{more} {'copy' if more == 1 else 'copies'} more than in one file, "
            f"{size * more:,} bytes"
        )
    if parts.left_out:
        _warn(f"in no part, and so in no file: {', '.join(parts.left_out)}")
    between = [
        f"{name} of {part!r}"
        for part, inputs in parts.flows.items()
        for name, source in inputs.items()
        if source is None
    ]
    if between and len(parts.flows) == len(parts.functions):  # else a function may compute them
        _warn(f"computed by the model itself, and by no file: {', '.join(between)}")


def _warn(text: str) -> None:
    warnings.warn(text, PaletteWarning, stacklevel=5)


def _count(made: Parts, model: nn.Module) -> None:
    """Find the weights that several parts hold, and those that none does."""
    held = {name: _tensors(function.module) for name, function in made.functions.items()}
    for weight, tensors in _weights(model).items():
        parts = [name for name, ids in held.items() if any(id(t) in ids for t in tensors)]
        if len(parts) > 1:
            made.copies[weight] = (parts, sum(t.numel() * t.element_size() for t in tensors))
        elif not parts:
            made.left_out.append(weight)


def _tensors(module: nn.Module | None) -> set[int]:
    assert module is not None  # parts have one
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


def _weights(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return the tensors of each palettized weight, and of each parameter that is none."""
    found: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    for site in palette_sites(model):
        found[site.name] = list(site.palette.buffers())
        seen.update(map(id, (*site.palette.buffers(), *site.palette.parameters())))
    for name, parameter in model.named_parameters():
        if id(parameter) not in seen and parameter.numel():  # packed weights leave empty ones
            found[name] = [parameter]
    return found
