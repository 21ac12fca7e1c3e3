"""Clusterers that break one sentence of the contract each, by the check that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
from palette_core.plugins import Clusterer, ClustererEntry, ClusterProblem, NoOptions
from palette_core.tensors.codebook import Codebook

Fit = Callable[[ClusterProblem], Any]


class Fits(Clusterer):
    def __init__(self, fit: Fit) -> None:
        self._fit = fit

    def fit(self, problem: ClusterProblem) -> Codebook:
        return self._fit(problem)


def entry(fit: Fit, **more: Any) -> ClustererEntry:
    made = ClustererEntry(
        name="wrong",
        summary="wrong",
        interface=1,
        options=NoOptions,
        factory=lambda _: Fits(fit),
        supports_importance=True,
    )
    return replace(made, **more)


def right(problem: ClusterProblem) -> Codebook:
    return KMeans1d().fit(problem)


def spoiled(change: Callable[[ClusterProblem, Codebook], Any]) -> ClustererEntry:
    """The right result, changed."""
    return entry(lambda problem: change(problem, right(problem)))


def asked(change: Callable[[ClusterProblem], ClusterProblem]) -> ClustererEntry:
    """The right result of another problem."""
    return entry(lambda problem: right(change(problem)))


def with_entries(problem: ClusterProblem, lut: Tensor) -> Codebook:
    stored = lut.to(problem.points.dtype).double()
    codes = (problem.points.double() - stored.transpose(1, 2)).abs().argmin(-1)
    return Codebook(lut.float(), codes.to(torch.uint8))


def evenly_spread(problem: ClusterProblem) -> Codebook:
    low, high = (f(problem.points.double(), 1, keepdim=True) for f in (torch.amin, torch.amax))
    steps = torch.linspace(0, 1, problem.n_entries, dtype=torch.float64)[None, :, None]
    return with_entries(problem, low + steps * (high - low))


def about_zero(problem: ClusterProblem) -> Codebook:
    entries = torch.linspace(-1, 1, problem.n_entries)[None, :, None]
    return with_entries(problem, entries.expand(len(problem.points), -1, -1))


def writes(problem: ClusterProblem) -> Codebook:
    made = right(problem)
    problem.points.sub_(1)
    return made


def seeds_globally(problem: ClusterProblem) -> Codebook:
    torch.manual_seed(problem.seed)
    return right(problem)


def refuses_few(problem: ClusterProblem) -> Codebook:
    if problem.points.shape[1] < problem.n_entries:
        raise ValueError("n_samples should be at least n_clusters")
    return right(problem)


def by_range(problem: ClusterProblem, made: Codebook) -> Codebook:
    low, high = problem.points.min(), problem.points.max()
    normal = (made.lut - low) / (high - low)
    return replace(made, lut=normal * (high - low) + low)


def other_where_weighted(problem: ClusterProblem) -> Codebook:
    return right(problem) if problem.importance is None else evenly_spread(problem)


def plus_one(problem: ClusterProblem) -> ClusterProblem:
    if problem.importance is None:
        return problem
    return replace(problem, importance=problem.importance + 1)


_warm: list[int] = []


def other_when_warm(problem: ClusterProblem, made: Codebook) -> Codebook:
    return replace(made, lut=made.lut + len(_warm) * 1e-3)


CLUSTERERS: dict[str, ClustererEntry] = {
    "shapes": spoiled(lambda p, made: replace(made, lut=made.lut[:, :-1])),
    "dtypes": spoiled(lambda p, made: replace(made, lut=made.lut.to(p.points.dtype))),
    "code-range": spoiled(lambda p, made: replace(made, codes=made.codes + 1)),
    "finite": spoiled(lambda p, made: replace(made, lut=made.lut.square().sqrt())),
    "ascending": spoiled(lambda p, made: Codebook(made.lut.flip(1), p.n_entries - 1 - made.codes)),
    "nearest": spoiled(lambda p, made: replace(made, codes=made.codes // 2 * 2)),
    "inputs-untouched": entry(writes),
    "global-rng": entry(seeds_globally),
    "same-seed": spoiled(lambda p, made: replace(made, lut=made.lut + torch.rand(1) * 1e-3)),
    "blocks": spoiled(lambda p, made: replace(made, lut=made.lut + p.points.mean() * 1e-3)),
    "few-points": entry(refuses_few),
    "constants": spoiled(by_range),
    "few-values": entry(evenly_spread),
    "one-mean": entry(
        lambda p: with_entries(
            p, torch.linspace(-1, 1, p.n_entries).expand(len(p.points), -1)[..., None]
        )
    ),
    "nan": asked(lambda p: replace(p, points=p.points.nan_to_num(0, 0, 0))),
    "importance-ones": entry(other_where_weighted),
    "importance-scale": asked(plus_one),
    "importance-zero": asked(lambda p: replace(p, importance=None)),
    "quantized": entry(right, fits_quantized=True),
    "zeros": entry(right, keeps_zeros=True),
    "warm-up": replace(spoiled(other_when_warm), warm_up=lambda: _warm.append(1)),
    "vector-options": entry(right, supports_vector=True, vector_options=lambda settings: {}),
}
