"""Stages judged on held-out batches, by what the unchanged model returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from palette_core.errors import CalibrationError
from palette_core.statistics.activations.output_distance import distance, why_nothing
from palette_core.statistics.activations.restarting import Replays
from palette_core.statistics.activations.runs import Runner


def errors_of(
    stage: str | None,
    replays: Replays,
    runner: Runner,
    batches: Iterable[int],
    known: Mapping[int, Mapping[str, Any]],
    weights: Sequence[Mapping[str, Tensor]],
) -> list[float]:
    """Return how far a stage's outputs are from the unchanged model's, summed over batches.

    Args:
        stage: its name; None judges by the outputs of the model.
        replays: answers of stages from memory.
        runner: the model.
        batches: numbers of held-out ones.
        known: answers of other stages, by batch.
        weights: what to use in place of weights, by name: one error for each.

    Raises:
        CalibrationError: there is nothing to judge by.
    """
    totals = [0.0] * len(weights)
    for batch in batches:
        for i, error in enumerate(_errors(stage, replays, runner, batch, known[batch], weights)):
            totals[i] += error
    return totals


def _errors(
    stage: str | None,
    replays: Replays,
    runner: Runner,
    batch: int,
    answers: Mapping[str, Any],
    weights: Sequence[Mapping[str, Tensor]],
) -> list[float]:
    ran, truth = replays.output(stage, batch, replays.first[batch], {})
    others = [replays.output(stage, batch, answers, changed) for changed in weights]
    if any(also != ran for also, _ in others):
        # Its weights decide whether it runs: only the model's own outputs can be compared.
        return _errors(None, replays, runner, batch, answers, weights)
    why = why_nothing(truth)
    if why is not None:
        raise CalibrationError(
            f"{stage or 'the model'} cannot be judged by {runner.label(batch)}: what "
            f"the unchanged one returns on it {why}"
        )
    return [distance(truth, other) for _, other in others]
