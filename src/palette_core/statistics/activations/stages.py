"""The stages of a model: modules that are palettized, and judged, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from palette_core.errors import CalibrationError, did_you_mean
from palette_core.planning import TensorPlan

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def find_stages(
    model: nn.Module, plans: Sequence[TensorPlan], chosen: Sequence[str] | None = None
) -> dict[str, nn.Module]:
    """Return the outermost repeated parts that hold planned weights, and what is outside of them.

    An element of a ``ModuleList``, ``Sequential`` or ``ModuleDict`` is a stage, unless it is such
    a container itself; a module outside of those that owns planned weights is one too.

    Args:
        model: the model.
        plans: of the weights.
        chosen: names of the stages, which are then exactly these.

    Raises:
        CalibrationError: ``chosen`` names no module, or one inside another.
    """
    modules = dict(model.named_modules())
    if chosen is not None:
        for name in chosen:
            if name not in modules or not name:
                raise CalibrationError(
                    f"stages: the model has no module {name!r}{did_you_mean(name, modules)}"
                )
            outer = [other for other in chosen if name.startswith(f"{other}.")]
            if outer:
                raise CalibrationError(f"stages: {name!r} is inside {outer[0]!r}")
        return {name: modules[name] for name in dict.fromkeys(chosen)}
    owners = {owner.module for plan in plans for owner in plan.owners}
    return {
        name: module
        for name, module in _visit(model, "", owners, element=False)
        if not isinstance(module, nn.ParameterList | nn.ParameterDict)
    }


def stage_of(name: str, stages: Sequence[str]) -> str | None:
    """Return the stage that a module is, or is inside of."""
    return next((s for s in stages if name == s or name.startswith(f"{s}.")), None)


def _visit(
    module: nn.Module, name: str, owners: set[str], *, element: bool
) -> Iterator[tuple[str, nn.Module]]:
    inside = [o for o in owners if not name or o == name or o.startswith(f"{name}.")]
    if not inside:
        return
    container = isinstance(module, _CONTAINERS)
    if name and not container and (element or name in owners):
        yield name, module
        return
    for child, submodule in module.named_children():
        yield from _visit(
            submodule, f"{name}.{child}" if name else child, owners, element=container
        )
