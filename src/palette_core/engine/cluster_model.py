"""Cluster the weights of a model, with what calibration batches say where there are some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from palette_core._common.progress import progress_bar
from palette_core._common.warned import warn
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job, check_finite
from palette_core.engine.results import Clustered
from palette_core.engine.stage_by_stage import walk_through
from palette_core.errors import PlanError
from palette_core.planning import Plan, TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.clusterers import damping_of
from palette_core.statistics.activations import Feeder, Findings, InputCalibration, completed
from palette_core.statistics.gradients.reading import read_sensitivities
from palette_core.tensors.sensitivities import Sensitivity


def cluster_model(
    model: nn.Module,
    plan: Plan,
    looked: tuple[InputCalibration, Findings] | None,
    executor: Executor,
    *,
    sensitivity_path: str | Path | None = None,
    trust: bool = False,
) -> tuple[list[Job], list[Clustered]]:
    """Cluster every weight of a plan, with what is known about it.

    Weights that need moments and have none are warned of.

    Args:
        model: the dense model that the plan is of; not changed.
        plan: what to do with which weight.
        looked: calibration batches, and what they have shown.
        executor: who clusters.
        sensitivity_path: a file of sensitivities, or None.
        trust: take sensitivities of other weights.

    Returns:
        what was to be clustered, and the results, in the plan's order.

    Raises:
        WeightError: a weight is NaN or infinite.
        SensitivityError: the file does not fit.
        PlanError: there are sensitivities, and every weight goes by moments instead.
        ClusteringError: an algorithm failed.
        CalibrationError: the model failed on a calibration batch.
    """
    catalog = executor.catalog
    jobs = _jobs(model, plan, sensitivity_path, trust=trust)
    needy = _needy(jobs, catalog)
    feeder = None
    if looked is not None:
        calibration, findings = looked
        findings = completed(model, list(needy.values()), calibration, findings)
        _check_of_use(jobs, calibration, findings, catalog)
        feeder = Feeder(model, [job.plan for job in jobs], calibration, findings)
    damping = {
        name: damping_of(catalog.clusterers.find(plan.algorithm), plan.algorithm_options, name)
        for name, plan in needy.items()
    }
    with progress_bar("Palettizing", len(jobs), show=executor.progress) as advance:
        if feeder is None:
            missing = dict.fromkeys(needy, "no calibration batches were given")
            results = executor.run(jobs, advance)
        else:
            results, missing = walk_through(jobs, feeder, damping, executor, advance)
    warn(*fallback_sentences(missing), stacklevel=3)  # whoever called prepare()
    by_moments = [j for j, r in zip(jobs, results, strict=True) if r.algorithm == j.plan.algorithm]
    if jobs and len(_ignoring(by_moments, catalog)) == len(jobs):
        warn(
            "sensitivity_path was of no use: all weights were palettized by moments instead",
            stacklevel=3,  # whoever called prepare()
        )
    return jobs, results


def _jobs(
    model: nn.Module, plan: Plan, sensitivity_path: str | Path | None, *, trust: bool
) -> list[Job]:
    weights = dense_weights(model, plan)
    known: dict[str, Sensitivity] = {}
    if sensitivity_path is not None:
        known = read_sensitivities(sensitivity_path, plan, weights, trust=trust)
    return [
        Job(tensor, weights[tensor.name], known.get(tensor.name), checked=True) for tensor in plan
    ]


def dense_weights(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
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


def _check_of_use(
    jobs: Sequence[Job], calibration: InputCalibration, findings: Findings, catalog: Catalog
) -> None:
    """Refuse sensitivities where it is known that every weight goes by moments instead."""
    if calibration.sequential or calibration.held_out:
        return
    useless = _ignoring([job for job in jobs if job.plan.name in findings.moments], catalog)
    if useless and len(useless) == len(jobs):
        raise PlanError(
            f"algorithm {useless[0].plan.algorithm!r} does not take sensitivities, and all "
            "weights have moments; prepare without sensitivity_path"
        )


def _needy(jobs: Iterable[Job], catalog: Catalog) -> dict[str, TensorPlan]:
    """Return the plans whose algorithm needs moments, by name."""
    plans = (job.plan for job in jobs)
    return {p.name: p for p in plans if catalog.clusterers.get(p.algorithm).needs_moments}


def _ignoring(jobs: Iterable[Job], catalog: Catalog) -> list[Job]:
    """Return the jobs with sensitivities whose algorithm looks at moments alone."""
    entries = catalog.clusterers
    return [
        job
        for job in jobs
        if job.sensitivity is not None
        and entries.get(job.plan.algorithm).needs_moments
        and not entries.get(job.plan.algorithm).supports_importance
    ]


def fallback_sentences(missing: Mapping[str, str]) -> list[str]:
    """Return one sentence per reason for which k-means has to do for some weights.

    Args:
        missing: reasons by name.
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in missing.items():
        reasons.setdefault(reason, []).append(name)
    return [
        f"{', '.join(names)}: palettized by k-means, as the algorithm needs moments of the "
        f"layer's inputs, and {reason}"
        for reason, names in reasons.items()
    ]
