"""Predicted losses next to measured ones, at some sizes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from palette_core._common.progress import progress_bar
from palette_core._common.rng import untouched_global_rng
from palette_core.allocation.allocate import Allocation
from palette_core.allocation.judging import Evidence, job_of
from palette_core.engine.executor import Executor
from palette_core.errors import AllocationError
from palette_core.palettizer.attaching import attach_palettes
from palette_core.planning import Plan, TensorPlan
from palette_core.storage.sites import palette_sites

Measure = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Compared:
    """A point of the curve, and what was measured there.

    Attributes:
        bits_per_weight: counted as the allocation does.
        predicted_loss: the sum over tensors, in the unit of the metric.
        measured_loss: of the palettized model less that of the dense one, in its own unit; NaN
            or infinite where the palettized model gives no number.
    """

    bits_per_weight: float
    predicted_loss: float
    measured_loss: float


def compare_predictions(
    model: nn.Module,
    allocation: Allocation,
    measure: Measure,
    *,
    points: int = 3,
    sensitivity_path: str | Path | None = None,
    batches: Iterable[Any] = (),
    num_workers: int = 1,
    show_progress: bool | None = None,
) -> tuple[Compared, ...]:
    """Palettize copies of a model at points of an allocation's curve, and measure them.

    Weights are clustered as the candidates were that predictions are about. The model itself is
    not changed: ``measure`` gets copies, in evaluation mode and without gradients, and finds the
    same random states each time.

    Args:
        model: the dense model that bits were allocated for.
        allocation: what `allocate` returned.
        measure: returns the loss of a model, a number; lower is better.
        points: how many, spread evenly over the curve with both of its ends.
        sensitivity_path: as it was for `allocate`.
        batches: as they were for `allocate`.
        num_workers: clustering processes.
        show_progress: None shows a bar on a terminal.

    Returns:
        One row per point, from the smallest size to the largest.

    Raises:
        AllocationError: the model is another one, or ``measure`` fails or returns no number.
        CalibrationError: the model failed on a batch.
        SensitivityError: the file does not fit.
        ClusteringError: an algorithm failed.
        TypeError, ValueError: num_workers is no positive integer.
    """
    executor = Executor(num_workers, progress=show_progress)
    if points < 1:
        raise AllocationError(f"points must be a number of at least 1, got {points!r}")
    _check_model(model, allocation)
    at = np.unique(np.linspace(0, len(allocation.curve) - 1, points).round().astype(int)).tolist()
    plans = {i: _plans(allocation, allocation.curve_choices[i]) for i in at}
    dense = _measured(measure, _copied(model), "the dense model")
    if not math.isfinite(dense):
        raise AllocationError(f"measure returned {dense} for the dense model")
    evidence = Evidence.gather(
        model, Plan(plans[at[0]]), _by_name(plans), None, sensitivity_path, batches, executor
    )
    found = []
    with progress_bar("Measuring", len(at), show=executor.progress) as advance:
        for i in at:
            bits, predicted = allocation.curve[i]
            where = f"the model at {bits:.3f} bits per weight"
            loss = _measured(measure, _palettized(model, plans[i], evidence, executor), where)
            found.append(Compared(bits, predicted, loss - dense))
            advance(f"{bits:.3f} bits per weight", 1)
    return tuple(found)


def _plans(allocation: Allocation, chosen: Sequence[int]) -> tuple[TensorPlan, ...]:
    return tuple(
        tensor.candidates[i].plan for tensor, i in zip(allocation.tensors, chosen, strict=True)
    )


def _by_name(plans: Mapping[int, Sequence[TensorPlan]]) -> dict[str, list[TensorPlan]]:
    found: dict[str, list[TensorPlan]] = {}
    for row in plans.values():
        for plan in row:
            found.setdefault(plan.name, []).append(plan)
    return found


def _check_model(model: nn.Module, allocation: Allocation) -> None:
    if palette_sites(model):
        raise AllocationError("the model is palettized already; compare with the dense model")
    for tensor in allocation.tensors:
        shape = tensor.choice.plan.shape
        for owner in tensor.choice.plan.owners:
            try:
                found = getattr(model.get_submodule(owner.module), owner.state)
            except AttributeError:
                found = None
            if not isinstance(found, torch.Tensor) or tuple(found.shape) != tuple(shape):
                raise AllocationError(
                    f"the allocation is for another model: this one has no {owner.name} of "
                    f"shape {tuple(shape)}"
                )


def _palettized(
    model: nn.Module, plans: tuple[TensorPlan, ...], evidence: Evidence, executor: Executor
) -> nn.Module:
    jobs = [job_of(plan, evidence) for plan in plans]
    with untouched_global_rng():
        results = executor.run(jobs)
        made = _copied(model)
        attach_palettes(made, jobs, results, None, executor.catalog)
    return made


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        raise AllocationError(
            f"{type(model).__name__} cannot be copied, and the model itself is to stay as it is: "
            f"{type(error).__name__}: {error}"
        ) from error


def _measured(measure: Measure, model: nn.Module, which: str) -> float:
    try:
        with untouched_global_rng(), torch.no_grad():
            return float(measure(model))
    except (Exception, SystemExit) as error:
        raise AllocationError(
            f"measure failed on {which}: {type(error).__name__}: {error}; it gets a model and "
            "returns its loss, a number"
        ) from error
