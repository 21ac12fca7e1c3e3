"""Palettize with what calibration batches say: all weights at once, or block after block."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from palette_core._common.progress import progress_bar
from palette_core.engine.block_by_block import Walk
from palette_core.engine.cluster_tensor import Clustered
from palette_core.engine.executor import Job, OnDone, run_with_bar
from palette_core.errors import PaletteWarning, PlanError
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.statistics.activations import (
    Findings,
    InputCalibration,
    Runner,
    collect,
    loss_weights,
)


def look(model: nn.Module, plans: Sequence[TensorPlan], calibration: InputCalibration) -> Findings:
    """Run the unchanged model on the batches, as far as that is of use.

    Raises:
        CalibrationError: the model, or the loss, failed on a batch.
    """
    runner = Runner(model, plans, calibration.batches)
    found = Findings(names=frozenset(plan.name for plan in plans))
    with runner:
        if calibration.loss is not None:
            found.weights = loss_weights(runner, calibration.loss, calibration.output_groups)
        if not calibration.sequential:
            found.moments, found.missing = collect(
                runner, folder=calibration.folder, weights=found.weights
            )
    return found


def run_calibrated(
    model: nn.Module,
    jobs: Sequence[Job],
    calibration: InputCalibration,
    findings: Findings,
    *,
    num_workers: int = 1,
    catalog: Catalog,
    on_done: OnDone | None = None,
) -> tuple[list[Clustered], dict[str, str]]:
    """Cluster every job with moments where its algorithm needs them.

    Returns:
        results in the order of ``jobs``, and by name why a weight that needs moments had none.

    Raises:
        PlanError: there are sensitivities, and every weight goes by moments instead.
    """
    findings = _completed(model, jobs, calibration, findings, catalog)
    if not calibration.sequential and not calibration.held_out:
        useless = _ignoring([j for j in jobs if j.plan.name in findings.moments], catalog)
        if useless and len(useless) == len(jobs):
            raise PlanError(
                f"algorithm {useless[0].plan.algorithm!r} does not take sensitivities, and all "
                "weights have moments; prepare without sensitivity_path"
            )
    walk = Walk(model, jobs, calibration, findings, num_workers, catalog, on_done)
    with walk.runner:
        results = walk.sequentially() if calibration.sequential else walk.at_once()
    return [results[job.plan.name] for job in jobs], walk.missing


def _completed(
    model: nn.Module,
    jobs: Sequence[Job],
    calibration: InputCalibration,
    findings: Findings,
    catalog: Catalog,
) -> Findings:
    """Return findings for all weights that need moments.

    Calibration has looked at weights that its first batch uses, and `prepare` may find others.
    """
    plans = [
        job.plan
        for job in jobs
        if catalog.clusterers.get(job.plan.algorithm).needs_moments
        and job.plan.name not in findings.names
    ]
    if not plans:
        return findings
    more = look(model, plans, calibration)
    return Findings(
        {**findings.moments, **more.moments},
        {**findings.missing, **more.missing},
        {**(findings.weights or {}), **(more.weights or {})} or None,
        findings.names | more.names,
    )


def _ignoring(jobs: Iterable[Job], catalog: Catalog) -> list[Job]:
    """Return the jobs with sensitivities whose algorithm looks at moments alone."""
    entries = catalog.clusterers
    return [
        job
        for job in jobs
        if job.importance is not None
        and entries.get(job.plan.algorithm).needs_moments
        and not entries.get(job.plan.algorithm).supports_importance
    ]


def run_aware(
    model: nn.Module,
    jobs: Sequence[Job],
    looked: tuple[InputCalibration, Findings] | None,
    *,
    num_workers: int,
    catalog: Catalog,
    show: bool | None,
) -> list[Clustered]:
    """Cluster every job, with what calibration found where there was one, and a progress bar.

    Weights that need moments and have none are warned of.
    """
    if looked is None:
        missing = not_calibrated(jobs, catalog)
        results = run_with_bar(jobs, num_workers=num_workers, catalog=catalog, show=show)
    else:
        with progress_bar("Palettizing", len(jobs), show=show) as advance:
            results, missing = run_calibrated(
                model,
                jobs,
                *looked,
                num_workers=num_workers,
                catalog=catalog,
                on_done=lambda job, _: advance(job.plan.name, 1),
            )
    warn_about(missing)
    by_moments = [j for j, r in zip(jobs, results, strict=True) if r.algorithm == j.plan.algorithm]
    if jobs and len(_ignoring(by_moments, catalog)) == len(jobs):
        warnings.warn(
            "sensitivity_path was of no use: all weights were palettized by moments instead",
            PaletteWarning,
            stacklevel=4,  # whoever called prepare()
        )
    return results


def not_calibrated(jobs: Sequence[Job], catalog: Catalog) -> dict[str, str]:
    """Return, for weights whose algorithm needs moments, that there was no calibration."""
    return {
        job.plan.name: "no calibration batches were given"
        for job in jobs
        if catalog.clusterers.get(job.plan.algorithm).needs_moments
    }


def warn_about(missing: Mapping[str, str]) -> None:
    """Issue one `PaletteWarning` per reason for which k-means has to do for some weights."""
    reasons: dict[str, list[str]] = {}
    for name, reason in missing.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        warnings.warn(
            f"{', '.join(names)}: palettized by k-means, as the algorithm needs moments of the "
            f"layer's inputs, and {reason}",
            PaletteWarning,
            stacklevel=5,  # whoever called prepare()
        )
