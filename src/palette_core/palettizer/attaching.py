"""Palettes in a live model: put there, and asked what they were found with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered
from palette_core.errors import SensitivityError
from palette_core.model import parametrization
from palette_core.model.hooked_weights import replace_hook
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.palettizer.trainer import make_trainer
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.stored_forms import make_stored_form
from palette_core.storage.origins import Origin
from palette_core.storage.sites import palette_sites
from palette_core.tensors.sensitivities import Sensitivity


def sensitivities_of(model: nn.Module) -> dict[str, Sensitivity]:
    """Return the sensitivities that the palettes of a prepared model were found with.

    Raises:
        SensitivityError: there are none.
    """
    sites = palette_sites(model, PalettizedWeight)
    found = {s.name: s.palette.sensitivity for s in sites if s.palette.sensitivity is not None}
    if not found:
        raise SensitivityError(
            "No sensitivities found in the model; measure them in calibration_mode(), or "
            "prepare with sensitivity_path"
        )
    return found


def attach_palettes(
    model: nn.Module,
    jobs: Sequence[Job],
    results: Sequence[Clustered],
    origins: Sequence[Origin | None],
    catalog: Catalog,
) -> None:
    """Install every palette, or none."""
    places = [[(model.get_submodule(o.module), o.state) for o in job.plan.owners] for job in jobs]
    with parametrization.ModuleSnapshot(module for each in places for module, _ in each):
        for job, result, origin, where in zip(jobs, results, origins, places, strict=True):
            trainer = make_trainer(job.plan, catalog)
            form = make_stored_form(catalog, job.plan.spec.stored_form)
            item = PalettizedWeight(job.plan, result.palettized, trainer, form)
            item.sensitivity, item.origin = job.sensitivity, origin
            for module, state in where:
                replace_hook(module, state)
                item.train(module.training)
                parametrization.attach(module, state, item)
