"""Palettes in a live model: put there, with what is known about where they come from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from palette_core._common.collecting import collecting_later
from palette_core.config import KMeansPalettizerConfig
from palette_core.engine.jobs import Job
from palette_core.engine.origins import source_of
from palette_core.engine.results import Clustered
from palette_core.model import parametrization
from palette_core.model.hooked_weights import replace_hook
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.palettizer.trainer import Trainer
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.lut_quantizers import make_lut_quantizer
from palette_core.plugins.checked.training import make_strategy
from palette_core.storage.forms.lookup import form_for
from palette_core.storage.origins import Origin
from palette_core.storage.savers import guard_savers


def attach_palettes(
    model: nn.Module,
    jobs: Sequence[Job],
    results: Sequence[Clustered],
    config: KMeansPalettizerConfig | None,
    catalog: Catalog,
) -> None:
    """Install every palette, or none.

    Args:
        model: the model, dense.
        jobs: what was clustered.
        results: what came of it.
        config: the rules that the plan was made by, for files to tell; None tells nothing.
        catalog: the installed plug-ins.
    """
    origins: Sequence[Origin | None] = [None] * len(jobs)
    if config is not None:
        made = [
            (job.plan, result.algorithm, form_for(result.palettized, job.plan.spec.stored_form))
            for job, result in zip(jobs, results, strict=True)
        ]
        source = source_of(config, made, catalog)
        origins = [Origin(name or plan.algorithm, plan.seed, source) for plan, name, _ in made]
    places = [[(model.get_submodule(o.module), o.state) for o in job.plan.owners] for job in jobs]
    owners = (module for each in places for module, _ in each)
    with collecting_later(), parametrization.ModuleSnapshot(owners):
        for job, result, origin, where in zip(jobs, results, origins, places, strict=True):
            item = PalettizedWeight(job.plan, result.palettized, _trainer(job.plan, catalog))
            vars(item).update(sensitivity=job.sensitivity, origin=origin)
            for module, state in where:
                replace_hook(module, state)
                parametrization.attach(module, state, item)
        guard_savers(model)


def _trainer(plan: TensorPlan, catalog: Catalog) -> Trainer:
    """Make what a weight trains by, as its plan says.

    Raises:
        PluginOptionsError, TrainingError: see `make_strategy`.
    """
    spec, schedule = plan.spec, plan.pat_schedule
    entry = catalog.training_strategies.get(spec.training_strategy)
    return Trainer(
        make_strategy(catalog, entry.name, spec.training_strategy_options, plan.name),
        0 if schedule is None else schedule.enable_fake_palettize,
        entry.trains_lut,
        entry.moves_lut,
        spec.preserve_zero or (False if spec.sparsity_detection_threshold is None else None),
        make_lut_quantizer(catalog, plan.lut_quantizer, spec.lut_qspec, plan.name),
    )
