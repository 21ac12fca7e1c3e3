"""Differentiable k-means: weights attend to entries, entries are means of the weights."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from palette_core.builtins.training._attention import attended_means, attended_points, distinct
from palette_core.builtins.training.options import DkmOptions
from palette_core.plugins import TrainingProblem, TrainingStrategy
from palette_core.tensors import squared_distances


@final
class DifferentiableKMeans(TrainingStrategy):
    """Differentiable k-means (Cho et al., "DKM", arXiv 2108.12659, section 3).

    The forward pass takes soft k-means steps from the tables of the last training step, and
    replaces every weight by the entries it attends to; gradients reach the weights through both.
    The tables are no parameters: they follow from the weights. Attention is not kept for the
    backward pass, and scalars attend once per distinct value of 16 bits (eDKM, arXiv 2309.00964):
    what is kept grows with weights and with distinct values, not with weights times entries.

    Args:
        options: temperature and its schedule, and soft k-means steps.
    """

    def __init__(self, options: DkmOptions | None = None) -> None:
        self.options = DkmOptions() if options is None else options

    def forward(self, problem: TrainingProblem) -> Tensor:
        """Return what the weights attend to."""
        points = problem.points()
        among = distinct(points)
        tau = self._tau(problem)
        entries = problem.as_stored(self._moved(problem, points)).to(among.values.dtype)
        return problem.merge(attended_points(points, entries, tau, among))

    def harden(self, problem: TrainingProblem) -> Tensor:
        """Return the nearest entries' codes."""
        return problem.nearest(problem.points(), problem.as_stored(problem.lut))

    def advance(self, problem: TrainingProblem) -> Tensor:
        """Return the tables after the soft k-means steps."""
        return self._moved(problem, problem.points())

    def _moved(self, problem: TrainingProblem, points: Tensor) -> Tensor:
        among, tau = distinct(points), self._tau(problem)
        lut = problem.lut.to(among.values.dtype)
        for _ in range(self.options.iterations):
            lut = attended_means(points, lut, tau, among)
        return lut

    def _tau(self, problem: TrainingProblem) -> Tensor:
        """Return the temperature of each table, ``[B, 1, 1]``, in squares of the weights' unit."""
        lut = problem.lut.detach()
        lut = lut.to(torch.promote_types(lut.dtype, torch.float32))
        gaps = squared_distances(lut, lut)
        gaps = torch.where(gaps > 0, gaps, torch.inf).amin(dim=2)  # spare entries repeat another
        known = torch.isfinite(gaps)
        unit = torch.where(known, gaps, 0.0).sum(dim=1) / known.sum(dim=1).clamp(min=1)
        unit = torch.where(unit > 0, unit, 1.0) / 12
        return (self.options.at(problem.step) * unit)[:, None, None]
