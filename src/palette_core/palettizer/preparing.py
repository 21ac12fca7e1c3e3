"""From a plan to palettes in a live model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from palette_core._common.rng import untouched_global_rng
from palette_core.engine.cluster_tensor import Clustered, check_finite, make_lut_quantizer
from palette_core.engine.data_aware import run_aware
from palette_core.engine.executor import Job
from palette_core.engine.report import Report, make_report
from palette_core.errors import SensitivityError
from palette_core.model import parametrization
from palette_core.model.hooked_weights import replace_hook
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.planning import Plan
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.training import make_strategy
from palette_core.statistics.activations import Findings, InputCalibration
from palette_core.storage.sensitivity_files import load_sensitivities
from palette_core.storage.sites import palette_sites
from palette_core.tensors.sensitivities import Sensitivity

Sensitivities = Mapping[str, Sensitivity]


def palettize(
    model: nn.Module,
    plan: Plan,
    looked: tuple[InputCalibration, Findings] | None,
    sensitivity_path: str | Path | None,
    *,
    catalog: Catalog,
    num_workers: int,
    trust_sensitivities: bool,
    show: bool | None,
) -> Report:
    """Find palettes for a plan's weights, and let them stand for the weights in the live model.

    Args:
        model: the model that the plan is of.
        plan: what to do with which weight.
        looked: what calibration found for algorithms that need moments, if there was one.
        sensitivity_path: a file of sensitivities, or None. Weights with moments go by these.
        catalog: the installed plug-ins.
        num_workers: how many processes cluster.
        trust_sensitivities: take sensitivities of other weights.
        show: a progress bar; None shows one on a terminal.

    Raises:
        WeightError: a weight is NaN or infinite.
        SensitivityError: the file does not fit.
        PlanError: all weights have moments, and none is left for the sensitivities.
        ClusteringError: an algorithm failed.
        CalibrationError: the model failed on a calibration batch.
    """
    with untouched_global_rng():
        weights = planned_weights(model, plan)
        sensitivities = read_sensitivities(
            sensitivity_path, plan, weights, trust=trust_sensitivities
        )
        jobs = make_jobs(plan, weights, sensitivities)
        results = run_aware(
            model, jobs, looked, num_workers=num_workers, catalog=catalog, show=show
        )
    report = make_report(plan, results)
    attach_palettes(model, plan, results, sensitivities, catalog)
    return report


def planned_weights(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return the dense weights of a plan by name.

    Raises:
        WeightError: one is NaN or infinite.
    """
    weights: dict[str, Tensor] = {}
    for tensor in plan:
        owner = tensor.owners[0]
        weights[tensor.name] = getattr(model.get_submodule(owner.module), owner.state).detach()
        check_finite(tensor.name, weights[tensor.name])
    return weights


def read_sensitivities(
    path: str | Path | None, plan: Plan, weights: Mapping[str, Tensor], *, trust: bool
) -> Sensitivities:
    """Return the sensitivities of a plan's weights; none without a file."""
    return {} if path is None else load_sensitivities(path, plan, weights, trust=trust)


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


def make_jobs(plan: Plan, weights: Mapping[str, Tensor], sensitivities: Sensitivities) -> list[Job]:
    """Return what is to be clustered, in the plan's order."""
    return [
        Job(
            tensor,
            weights[tensor.name],
            sensitivities[tensor.name].values if tensor.name in sensitivities else None,
            checked=True,
        )
        for tensor in plan
    ]


def attach_palettes(
    model: nn.Module,
    plan: Plan,
    results: Sequence[Clustered],
    sensitivities: Sensitivities,
    catalog: Catalog,
) -> None:
    """Install every palette, or none."""
    places = [list(parametrization.places(model, tensor.owners)) for tensor in plan]
    kept = parametrization.Kept(module for each in places for module, _ in each)
    try:
        for tensor, result, where in zip(plan, results, places, strict=True):
            entry = catalog.training_strategies.get(tensor.spec.training_strategy)
            strategy = make_strategy(
                catalog, entry.name, tensor.spec.training_strategy_options, tensor.name
            )
            item = PalettizedWeight(
                tensor,
                result.palettized,
                strategy,
                trains_lut=entry.trains_lut,
                moves_lut=entry.moves_lut,
                quantizer=make_lut_quantizer(tensor, catalog),
            )
            item.sensitivity = sensitivities.get(tensor.name)
            for module, state in where:
                replace_hook(module, state)
                item.train(module.training)
                item.requires_grad_(parametrization.is_trained(module, state))
                parametrization.attach(module, state, item)
    except BaseException:
        kept.restore()
        raise
