"""Sentences about parts, and the weights that they are about."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from palette_core._common.warned import warn
from palette_core.model.hooked_weights import made_of
from palette_core.palettizer.functions import Asked, inputs_for
from palette_core.palettizer.parts.asked import check_beside, check_parts
from palette_core.palettizer.parts.making import Parts, Weight, make_parts
from palette_core.palettizer.targets import Target
from palette_core.planning import Plan, refuse_program
from palette_core.planning.sizes import bits_at_least
from palette_core.storage.sites import palette_sites


def planned_parts(plan: Plan, model: nn.Module, target: Target, asked: Asked) -> Plan:
    """Return a plan that tells what parts would store, each checked as a program.

    Args:
        plan: of the model.
        model: dense.
        target: of the export.
        asked: parts, and inputs of the model, as users write them.

    Raises:
        BackendError: as of `check_beside`, `check_parts` and `make_parts`.
        PlanError: the backend cannot export an operation of a part; naming the part.
    """
    check_beside(asked)
    parts, inputs = (
        check_parts(asked.parts, model, target),
        inputs_for(target, asked.example_inputs),
    )
    made = make_parts(parts, model, inputs, _planned(plan, model))
    for name, part in made.functions.items():
        assert part.module is not None  # parts have one
        refuse_program(
            part.module, part.inputs, target.backend, part.dynamic_shapes, f"part {name!r}: "
        )
    notes = (*plan.notes, *sentences(made))
    return replace(plan, notes=notes, copies=tuple(made.copies), left_out=tuple(made.left_out))


def stored_weights(model: nn.Module) -> dict[str, Weight]:
    """Return each palettized weight of a finalized model, and each parameter that is none."""
    found: dict[str, Weight] = {}
    seen: set[int] = set()
    for site in palette_sites(model):
        found[site.name] = _weight(list(site.palette.buffers()))
        seen.update(map(id, (*site.palette.buffers(), *site.palette.parameters())))
    return {**found, **_parameters(model, seen)}


def _planned(plan: Plan, model: nn.Module) -> dict[str, Weight]:
    """Return the weights of a dense model with the bytes that they are planned to take."""
    found: dict[str, Weight] = {}
    for each in plan.tensors:
        owner = each.owners[0]
        tensors = _stored_as(model.get_submodule(owner.module), owner.state)
        bits = bits_at_least(each, each.spec, each.layout)
        found[each.name] = Weight(tensors, -(-bits // 8))
    seen = {id(tensor) for weight in found.values() for tensor in weight.tensors}
    return {**found, **_parameters(model, seen)}


def _stored_as(module: nn.Module, state: str) -> list[Tensor]:
    """Return the tensor of a module, or those that it is computed from."""
    if parametrize.is_parametrized(module, state):
        inside: Any = module.parametrizations[state]  # type: ignore[index]
        return [*inside.parameters(), *inside.buffers()]
    names = made_of(module, state) or (state,)
    return [getattr(module, name) for name in names]


def _parameters(model: nn.Module, seen: set[int]) -> Mapping[str, Weight]:
    return {
        name: _weight([parameter])
        for name, parameter in model.named_parameters()
        if id(parameter) not in seen and parameter.numel()  # packed weights leave empty ones
    }


def _weight(tensors: list[Tensor]) -> Weight:
    return Weight(tensors, sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def warn_of(parts: Parts, said: Collection[str]) -> None:
    """Warn of what a user may not expect, but for what was ``said``.

    Warns:
        PaletteWarning: one for each of `sentences`.
    """
    warn(*(text for text in sentences(parts) if text not in said), stacklevel=4)


def sentences(parts: Parts) -> Iterator[str]:
    """Yield what is to be said: copies, weights in no file, inputs that no file computes."""
    for each in parts.copies:
        more = len(each.parts) - 1
        yield (
            f"{each.weight} is in the files of {', '.join(each.parts[:-1])} and "
            f"{each.parts[-1]}: {more} {'copy' if more == 1 else 'copies'} more than in one file, "
            f"{each.bytes * more:,} bytes"
        )
    if parts.left_out:
        yield f"in no part, and so in no file: {', '.join(parts.left_out)}"
    between = [
        f"{name} of {part!r}"
        for part, inputs in parts.flows.items()
        for name, source in inputs.items()
        if source is None
    ]
    if between and len(parts.flows) == len(parts.functions):  # else a function may compute them
        yield f"computed by the model itself, and by no file: {', '.join(between)}"
