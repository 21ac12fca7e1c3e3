"""Second moments of a model's inputs to its planned weights, from calibration batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from palette_core._common.progress import Advance
from palette_core.planning import TensorPlan
from palette_core.statistics.activations.accumulate import Accumulator
from palette_core.statistics.activations.runs import Runner
from palette_core.statistics.activations.watch import Seen
from palette_core.tensors.moments import InputMoments

CallKey = tuple[str, int, int]
"""A call: name of the weight, number of the batch, number of the call in its run."""


def collect(
    runner: Runner,
    *,
    folder: Path | None = None,
    weights: Mapping[CallKey, Tensor] | None = None,
    advance: Advance | None = None,
) -> tuple[dict[str, InputMoments], dict[str, str]]:
    """Run every batch once and return moments by name of the plan, usable or not.

    Args:
        runner: model, plans and batches.
        folder: where to keep matrices on disk instead of in memory.
        weights: by call, how much an input vector counts; see `Accumulator.add`.
        advance: called after each batch.

    Returns:
        moments by name, and for the others a reason why there are none.

    Raises:
        CalibrationError: the model failed on a batch.
    """
    sums = Accumulator(folder)
    reasons: dict[str, str] = {}

    def see(seen: Seen) -> None:
        if seen.what is None:
            reasons[seen.name] = (
                f"it is consumed by {seen.op_type!r}, whose inputs are not understood"
            )
            return
        given = None if weights is None else weights.get((seen.name, number, seen.call))
        sums.add(seen.name, seen.what, given)

    for number in range(len(runner.batches)):
        runner.run(number, see)
        sums.forget_inputs()
        if advance is not None:
            advance(f"batch {number + 1}", 1)
    return moments_of(runner.plans, sums, reasons)


def moments_of(
    plans: Sequence[TensorPlan], sums: Accumulator, reasons: Mapping[str, str]
) -> tuple[dict[str, InputMoments], dict[str, str]]:
    """Return usable moments by name, and for the others the reason why they are not."""
    found: dict[str, InputMoments] = {}
    missing: dict[str, str] = {}
    for plan in plans:
        moments = sums.result(plan)
        if moments is None:
            missing[plan.name] = reasons.get(plan.name, "no input came to it")
            continue
        obstacle = moments.obstacle()
        if obstacle is None:
            found[plan.name] = moments
        else:
            missing[plan.name] = obstacle
    return found, missing
