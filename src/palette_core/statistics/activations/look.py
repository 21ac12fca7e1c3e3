"""A first look at calibration batches: what the unchanged model shows before anything changes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from palette_core._common.progress import progress_bar
from palette_core.planning import TensorPlan
from palette_core.statistics.activations.collect import collect
from palette_core.statistics.activations.guided import loss_weights
from palette_core.statistics.activations.options import Findings, InputCalibration
from palette_core.statistics.activations.runs import Runner


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
            with progress_bar("Calibrating", len(calibration.batches)) as advance:
                found.moments, found.missing = collect(
                    runner, folder=calibration.folder, weights=found.weights, advance=advance
                )
    return found


def completed(
    model: nn.Module,
    plans: Sequence[TensorPlan],
    calibration: InputCalibration,
    findings: Findings,
) -> Findings:
    """Return findings for all of some weights.

    Calibration has looked at weights that its first batch uses, and there may be others.

    Raises:
        CalibrationError: see `look`.
    """
    others = [plan for plan in plans if plan.name not in findings.names]
    if not others:
        return findings
    more = look(model, others, calibration)
    return Findings(
        {**findings.moments, **more.moments},
        {**findings.missing, **more.missing},
        {**(findings.weights or {}), **(more.weights or {})} or None,
        findings.names | more.names,
    )
