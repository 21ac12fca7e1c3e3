"""What candidates cost: evidence about the model, clustering, and a metric; kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from palette_core.allocation.candidates import Judged
from palette_core.errors import AllocationError
from palette_core.execution import Job, run_jobs
from palette_core.files import atomic_path
from palette_core.input_moments import InputMoments
from palette_core.interfaces import (
    Candidate,
    ModelOutputs,
    SensitivityMetric,
    SensitivityMetricEntry,
)
from palette_core.moments import Runner, as_batch, collect
from palette_core.planning import Plan, TensorPlan
from palette_core.plugins import get_catalog
from palette_core.preparing import planned_weights, read_sensitivities
from palette_core.progress import progress_bar
from palette_core.rng import untouched_global_rng
from palette_core.sensitivities import Sensitivity, fingerprint

_CACHE_VERSION = 1


@dataclass
class Evidence:
    """What is known about a model's weights.

    Attributes:
        weights: dense, by name.
        sensitivities: from a file, by name.
        moments: of layers' inputs, by name, where they are usable.
        outputs: runs the model with a tensor in place of a weight.
        batches_id: tells calibration batches apart.
    """

    weights: Mapping[str, Tensor]
    sensitivities: Mapping[str, Sensitivity] = field(default_factory=dict)
    moments: Mapping[str, InputMoments] = field(default_factory=dict)
    outputs: Callable[[str, Tensor | None], ModelOutputs] | None = None
    batches_id: str = ""

    @classmethod
    def gather(
        cls,
        model: nn.Module,
        plan: Plan,
        entry: SensitivityMetricEntry,
        sensitivity_path: str | Path | None,
        batches: Iterable[Any],
        show_progress: bool | None,
    ) -> Evidence:
        """Measure what the metric and the planned algorithms want.

        Raises:
            AllocationError: the metric wants something that was not given.
            CalibrationError: the model failed on a batch.
            SensitivityError: the file does not fit.
        """
        made = cls(planned_weights(model, plan))
        made.sensitivities = read_sensitivities(sensitivity_path, plan, made.weights, trust=False)
        if entry.needs_squares:
            _check_squares(entry.name, made.sensitivities)
        given = [as_batch(item) for item in batches]
        if (entry.needs_moments or entry.needs_outputs) and not given:
            raise AllocationError(
                f"metric {entry.name!r} looks at calibration batches; give some (batches=…)"
            )
        if not given:
            return made
        made.batches_id = _identity(given)
        runner = Runner(model, tuple(plan), given)
        clusterers = get_catalog().clusterers
        if entry.needs_moments or any(clusterers.get(t.algorithm).needs_moments for t in plan):
            with progress_bar("Calibrating", len(given), show=show_progress) as advance:
                made.moments, missing = collect(runner, advance=advance)
            if entry.needs_moments and missing:
                what = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
                raise AllocationError(
                    f"metric {entry.name!r} has nothing to judge these weights by: {what}; "
                    "exclude them, or choose another metric"
                )
        if entry.needs_outputs:
            made.outputs = _outputs(runner)
        return made


def judge(
    plans: Mapping[str, Sequence[TensorPlan]],
    evidence: Evidence,
    metric: SensitivityMetric,
    *,
    identity: Any,
    cache: Path | None,
    num_workers: int,
    show_progress: bool | None,
) -> dict[str, list[Judged]]:
    """Cluster and judge every candidate, tensor by tensor.

    Args:
        plans: candidates by name of the tensor.
        evidence: see `Evidence`.
        metric: predicts losses.
        identity: of the metric and its options, for the cache.
        cache: a file of earlier results, which is written after every tensor.
        num_workers: clustering processes.
        show_progress: None shows a bar on a terminal.

    Raises:
        AllocationError: the cache is damaged, or the metric returned no usable number.
        ClusteringError: an algorithm, or the metric, failed.
    """
    known = _Cache(cache)
    found: dict[str, list[Judged]] = {}
    total = sum(map(len, plans.values()))
    with progress_bar("Judging", total, show=show_progress) as advance:
        for name, candidates in plans.items():
            keys = [_key(plan, evidence, identity) for plan in candidates]
            fresh = [i for i, key in enumerate(keys) if key not in known.values]
            jobs = [_job(candidates[i], evidence) for i in fresh]
            advance(name, len(candidates) - len(fresh))
            for i, result in zip(fresh, _clustered(jobs, num_workers), strict=True):
                loss = _loss(metric, candidates[i], result.decode(), evidence)
                known.values[keys[i]] = (result.size_in_bits(), loss)
                advance(name, 1)
            if fresh:
                known.save()
            found[name] = [
                Judged(plan, *known.values[key]) for plan, key in zip(candidates, keys, strict=True)
            ]
    return found


def _job(plan: TensorPlan, evidence: Evidence) -> Job:
    sensitivity = evidence.sensitivities.get(plan.name)
    moments = evidence.moments.get(plan.name)
    entry = get_catalog().clusterers.get(plan.algorithm)
    # One that looks at moments takes no sensitivities; then they are for the metric alone.
    weighted = entry.supports_importance or (entry.needs_moments and moments is None)
    return Job(
        plan,
        evidence.weights[plan.name],
        sensitivity.values if sensitivity is not None and weighted else None,
        moments,
    )


def _clustered(jobs: Sequence[Job], num_workers: int) -> list[Any]:
    with untouched_global_rng():
        return [result.palettized for result in run_jobs(jobs, num_workers=num_workers)]


def _loss(
    metric: SensitivityMetric, plan: TensorPlan, decoded: Tensor, evidence: Evidence
) -> float:
    run = evidence.outputs
    sensitivity = evidence.sensitivities.get(plan.name)
    candidate = Candidate(
        name=plan.name,
        weight=evidence.weights[plan.name],
        decoded=decoded,
        squares=None if sensitivity is None else sensitivity.squares(),
        moments=evidence.moments.get(plan.name),
        outputs=None if run is None else (lambda weight: run(plan.name, weight)),
    )
    return metric.loss(candidate)


def _check_squares(metric: str, sensitivities: Mapping[str, Sensitivity]) -> None:
    if not sensitivities:
        raise AllocationError(
            f"metric {metric!r} looks at squared gradients; measure them in calibration_mode(), "
            "save_sensitivities(), and give the file (sensitivity_path=…)"
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

    def run(name: str, weight: Tensor | None) -> ModelOutputs:
        if weight is None:
            if not reference:
                reference.extend(_floating(runner.run(i)) for i in range(len(runner.batches)))
            return reference
        return [
            _floating(runner.run(i, weights={name: weight})) for i in range(len(runner.batches))
        ]

    return run


def _floating(value: Any) -> list[Tensor]:
    """Return the floating tensors of a model's output, in order."""
    if isinstance(value, Tensor):
        return [value.detach()] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _floating(item)]
    return []


# --- the cache ----------------------------------------------------------------------------------


class _Cache:
    """Bits and losses by key, in a JSON file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.values: dict[str, tuple[int, float]] = {}
        if path is None or not path.exists():
            return
        try:
            stored = json.loads(path.read_text())
            if stored["version"] != _CACHE_VERSION:
                raise ValueError(f"version {stored['version']!r}")
            self.values = {k: (int(b), float(x)) for k, (b, x) in stored["losses"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise AllocationError(
                f"{path} is no cache of predicted losses ({error}); delete it, or name another"
            ) from None

    def save(self) -> None:
        if self._path is None:
            return
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps({"version": _CACHE_VERSION, "losses": self.values}))


def _key(plan: TensorPlan, evidence: Evidence, identity: Any) -> str:
    """Return what tells one prediction from all others."""
    sensitivity = evidence.sensitivities.get(plan.name)
    parts = [
        plan.name,
        fingerprint(evidence.weights[plan.name]),
        plan.spec.model_dump(mode="json"),
        [plan.algorithm, plan.algorithm_options, plan.lut_quantizer, plan.seed, plan.resolution],
        _made_by(plan),
        identity,
        evidence.batches_id,
        None if sensitivity is None else [fingerprint(sensitivity.values), sensitivity.scale],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _made_by(plan: TensorPlan) -> list[str]:
    """Return the distributions, with their versions, that cluster a plan."""
    catalog = get_catalog()
    found = [str(catalog.clusterers.find(plan.algorithm).distribution)]
    if plan.lut_quantizer is not None:
        found.append(str(catalog.lut_quantizers.find(plan.lut_quantizer).distribution))
    return found


def _identity(batches: Sequence[Any]) -> str:
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)}{fingerprint(value)}".encode())
        elif isinstance(value, Mapping):
            for key, item in value.items():
                digest.update(str(key).encode())
                add(item)
        elif isinstance(value, (tuple, list)):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(list(batches))
    return digest.hexdigest()
