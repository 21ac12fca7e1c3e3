"""Sensitivity metrics that break one sentence of the contract each."""

from __future__ import annotations

from collections.abc import Callable

import torch

from palette_core.plugins import Candidate, SensitivityMetric, SensitivityMetricEntry


def right(candidate: Candidate) -> float:
    return float((candidate.decoded.double() - candidate.weight.double()).square().sum())


def negative(candidate: Candidate) -> float:
    return -right(candidate)


def offset(candidate: Candidate) -> float:
    return right(candidate) + 1


def backwards(candidate: Candidate) -> float:
    error = right(candidate)
    return 1 / error if error else 0.0


def greedy(candidate: Candidate) -> float:
    candidate.decoded.sub_(candidate.weight)
    return float(candidate.decoded.double().square().sum())


def random(candidate: Candidate) -> float:
    noise = torch.randn((), generator=torch.Generator().manual_seed(torch.initial_seed()))
    return right(candidate) * float(noise.exp())


def metric(loss: Callable[[Candidate], float]) -> SensitivityMetricEntry:
    class Wrong(SensitivityMetric):
        def loss(self, candidate: Candidate) -> float:
            return loss(candidate)

    return SensitivityMetricEntry(
        name="wrong", summary="wrong", interface=1, factory=lambda options: Wrong()
    )


METRICS = {
    "finite": metric(negative),
    "nothing-lost": metric(offset),
    "more-error-more-loss": metric(backwards),
    "pure": metric(greedy),
    "repeatable": metric(random),
}
