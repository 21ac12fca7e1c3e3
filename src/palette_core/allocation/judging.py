"""The cost of candidates: evidence about the model, clustering, and a metric; kept in a file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from palette_core._common.progress import progress_bar
from palette_core._common.pytrees import floating, said_of
from palette_core._common.warned import warn
from palette_core.allocation.cache import LossFile, key_of, runs_digest
from palette_core.allocation.candidates import Judged
from palette_core.allocation.sizes import planned_bits
from palette_core.engine.cluster_model import dense_weights, fallback_sentences
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.errors import AllocationError, CalibrationError, MissingArgumentError
from palette_core.planning import Plan, TensorPlan
from palette_core.plugins import (
    Candidate,
    ModelOutputs,
    SensitivityMetric,
    SensitivityMetricEntry,
)
from palette_core.plugins.catalog import get_catalog
from palette_core.statistics.activations import Runner, batches_of, collect
from palette_core.statistics.gradients.reading import read_sensitivities
from palette_core.storage.forms.lookup import stored_bits
from palette_core.tensors.moments import InputMoments
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.sensitivities import Sensitivity, fingerprint


@dataclass
class Evidence:
    """Facts and measurements about a model's weights.

    Attributes:
        weights: dense, by name.
        sensitivities: from a file, by name.
        moments: of layers' inputs, by name, where they are usable.
        outputs: runs the model with a tensor in place of a weight.
        runs_id: tells the model as a whole, on its batches, from others; None without batches.
    """

    weights: Mapping[str, Tensor]
    sensitivities: Mapping[str, Sensitivity] = field(default_factory=dict)
    moments: Mapping[str, InputMoments] = field(default_factory=dict)
    outputs: Callable[[str, Tensor | None], ModelOutputs] | None = None
    runs_id: Callable[[], str] | None = None

    @classmethod
    def gather(
        cls,
        model: nn.Module,
        plan: Plan,
        candidates: Mapping[str, Sequence[TensorPlan]],
        entry: SensitivityMetricEntry | None,
        sensitivity_path: str | Path | None,
        batches: Iterable[Any],
        executor: Executor,
    ) -> Evidence:
        """Measure what the metric, if there is one, and the candidates' algorithms want.

        Candidates whose algorithm needs moments that there are not are warned of.

        Raises:
            AllocationError: the metric wants something that was not given.
            CalibrationError: the model failed on a batch.
            SensitivityError: the file does not fit.
        """
        made = cls(dense_weights(model, plan))
        if sensitivity_path is not None:
            made.sensitivities = read_sensitivities(sensitivity_path, plan, made.weights)
        if entry is not None and entry.needs_squares:
            _check_squares(entry.name, made.sensitivities)
        given = batches_of(batches)
        looks = entry is not None and (entry.needs_moments or entry.needs_outputs)
        if entry is not None and looks and not given:
            raise MissingArgumentError(
                f"metric {entry.name!r} looks at calibration batches; give some", "batches"
            )
        if given:
            made.runs_id = functools.cache(lambda: runs_digest(model, given))
        runner = Runner(model, tuple(plan), given)
        made._look_at_inputs(runner, candidates, entry, executor)
        if entry is not None and entry.needs_outputs:
            made.outputs = _outputs(runner)
        return made

    def _look_at_inputs(
        self,
        runner: Runner,
        candidates: Mapping[str, Sequence[TensorPlan]],
        entry: SensitivityMetricEntry | None,
        executor: Executor,
    ) -> None:
        judged_by = entry is not None and entry.needs_moments
        clustered_by = [n for n, row in candidates.items() if any(map(needs_moments, row))]
        if not clustered_by and not judged_by:
            return
        missing = dict.fromkeys(clustered_by, "no calibration batches were given")
        if runner.batches:
            with progress_bar(
                "Calibrating", len(runner.batches), show=executor.progress
            ) as advance:
                self.moments, missing = collect(runner, advance=advance)
        if entry is not None and judged_by and missing:
            what = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
            raise AllocationError(
                f"metric {entry.name!r} has nothing to judge these weights by: {what}; "
                "exclude them, or choose another metric"
            )
        found = {name: missing[name] for name in clustered_by if name in missing}
        warn(*fallback_sentences(found), stacklevel=4)  # whoever called allocate()


def needs_moments(plan: TensorPlan) -> bool:
    """Return whether a plan's algorithm looks at moments of a layer's inputs."""
    return get_catalog().clusterers.get(plan.algorithm).needs_moments


def judge(
    plans: Mapping[str, Sequence[TensorPlan]],
    evidence: Evidence,
    metric: SensitivityMetric,
    entry: SensitivityMetricEntry,
    *,
    identity: Any,
    cache: Path | None,
    executor: Executor,
) -> dict[str, list[Judged]]:
    """Cluster and judge every candidate, tensor by tensor.

    Args:
        plans: candidates by name of the tensor.
        evidence: see `Evidence`.
        metric: predicts losses.
        entry: of the metric; says what it looks at.
        identity: of the metric and its options, for the cache.
        cache: a file of earlier results, to which those of every tensor are added.
        executor: who clusters.

    Raises:
        AllocationError: the cache is something else, or the metric returned no usable number.
        ClusteringError: an algorithm, or the metric, failed.
        OSError: the cache cannot be written.
    """
    known = LossFile(cache)
    found: dict[str, list[Judged]] = {}
    total = sum(map(len, plans.values()))
    with progress_bar("Judging", total, show=executor.progress) as advance:
        for name, candidates in plans.items():
            keys = [_key(plan, evidence, entry, identity, cache) for plan in candidates]
            prices = [_known(known, k, p, executor) for k, p in zip(keys, candidates, strict=True)]
            fresh = [i for i, price in enumerate(prices) if price is None]
            jobs = [job_of(candidates[i], evidence) for i in fresh]
            advance(name, len(candidates) - len(fresh))
            for i, result in zip(fresh, _clustered(jobs, executor), strict=True):
                loss = _loss(metric, entry, candidates[i], result.decode(), evidence)
                prices[i] = stored_bits(result, candidates[i].spec.stored_form), loss
                advance(name, 1)
            known.add({keys[i]: price for i in fresh if (price := prices[i]) is not None})
            found[name] = [
                Judged(plan, *price)
                for plan, price in zip(candidates, prices, strict=True)
                if price is not None
            ]
    return found


def _known(
    known: LossFile, key: str, plan: TensorPlan, executor: Executor
) -> tuple[int, float] | None:
    """Return what is known of a candidate, unless the plan says that it has another size."""
    price = known.get(key)
    if price is None or planned_bits(plan, executor.catalog) in (None, price[0]):
        return price
    return None


def job_of(plan: TensorPlan, evidence: Evidence) -> Job:
    """Return a candidate with what its algorithm takes."""
    sensitivity = evidence.sensitivities.get(plan.name)
    moments = evidence.moments.get(plan.name)
    entry = get_catalog().clusterers.get(plan.algorithm)
    # One that looks at moments takes no sensitivities; then they are for the metric alone.
    weighted = entry.supports_importance or (entry.needs_moments and moments is None)
    return Job(
        plan,
        evidence.weights[plan.name],
        sensitivity if weighted else None,
        moments,
    )


def _clustered(jobs: Sequence[Job], executor: Executor) -> list[PalettizedTensor]:
    return [result.palettized for result in executor.run(jobs)]


def _key(
    plan: TensorPlan,
    evidence: Evidence,
    entry: SensitivityMetricEntry,
    identity: Any,
    cache: Path | None,
) -> str:
    if cache is None:  # nothing outlives this call
        return key_of(plan)
    sensitivity = evidence.sensitivities.get(plan.name)
    runs = entry.needs_moments or entry.needs_outputs or needs_moments(plan)
    return key_of(
        plan,
        fingerprint(evidence.weights[plan.name]),
        identity,
        evidence.runs_id() if runs and evidence.runs_id is not None else "",
        None if sensitivity is None else [fingerprint(sensitivity.values), sensitivity.scale],
    )


def _loss(
    metric: SensitivityMetric,
    entry: SensitivityMetricEntry,
    plan: TensorPlan,
    decoded: Tensor,
    evidence: Evidence,
) -> float:
    run = evidence.outputs
    sensitivity = evidence.sensitivities.get(plan.name)
    candidate = Candidate(
        name=plan.name,
        weight=evidence.weights[plan.name],
        decoded=decoded,
        squares=None if sensitivity is None else sensitivity.squares(),
        moments=evidence.moments.get(plan.name) if entry.needs_moments else None,
        outputs=None if run is None else (lambda weight: run(plan.name, weight)),
    )
    return metric.loss(candidate)


def _check_squares(metric: str, sensitivities: Mapping[str, Sensitivity]) -> None:
    if not sensitivities:
        raise MissingArgumentError(
            f"metric {metric!r} looks at squared gradients; measure them in calibration_mode(), "
            "save_sensitivities(), and give the file",
            "sensitivity_path",
        )
    lacking = [name for name, item in sensitivities.items() if item.scale is None]
    if lacking:
        raise AllocationError(
            f"the file of sensitivities does not say how large those of {lacking[0]} are next to "
            f"those of other weights, and metric {metric!r} compares weights; save a safetensors "
            "file with save_sensitivities()"
        )


def _outputs(runner: Runner) -> Callable[[str, Tensor | None], ModelOutputs]:
    reference: list[list[Tensor]] = []
    batches = range(len(runner.batches))

    def run(name: str, weight: Tensor | None) -> ModelOutputs:
        if not reference:
            reference.extend(_said(runner, i) for i in batches)
        if weight is None:
            return reference
        made = [floating(runner.run(i, weights={name: weight})) for i in batches]
        for i, (before, after) in enumerate(zip(reference, made, strict=True)):
            if [x.shape for x in before] != [x.shape for x in after]:
                raise CalibrationError(
                    f"{name}: with a palette for it the model returns tensors of other shapes on "
                    f"calibration batch {i}, so nothing can be compared; leave the weight out, or "
                    "choose a metric that does not look at outputs"
                )
        return made

    return run


def _said(runner: Runner, batch: int) -> list[Tensor]:
    """Return what the unchanged model says to a batch.

    Raises:
        CalibrationError: nothing: the batch is empty, or no floating tensor is in what it returns.
    """
    output = runner.run(batch)
    found = floating(output)
    if not found:
        raise CalibrationError(
            f"what the model returns on calibration batch {batch} holds no floating tensor: "
            f"{said_of(output)}; let it return scores, or choose another metric"
        )
    if not any(tensor.numel() for tensor in found):
        raise CalibrationError(
            f"calibration batch {batch} is empty: the model's outputs of it have no elements "
            f"(shape {tuple(found[0].shape)}), so nothing can be compared; leave the batch out"
        )
    return found
