"""Straight-through training: hard assignments that follow the weights, entries that learn."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from palette_core.plugins import TrainingProblem, TrainingStrategy
from palette_core.tensors import look_up


@final
class StraightThrough(TrainingStrategy):
    """Each weight is its nearest entry; entries and weights both learn.

    An entry's gradient is the sum over the weights that it stands for, as in the fine-tuning of
    Han et al., "Deep Compression" (arXiv 1510.00149), section 3.3. A weight's is that of what
    stands for it, straight through (Bengio et al., arXiv 1308.3432).
    """

    def __init__(self, options: Any) -> None:
        del options  # it has none

    def forward(self, problem: TrainingProblem) -> Tensor:
        """Return the nearest entries."""
        points, entries = problem.points(), problem.as_stored(problem.lut)
        return problem.merge(look_up(points, entries, problem.nearest(points, entries)))

    def harden(self, problem: TrainingProblem) -> Tensor:
        """Return the nearest entries' codes."""
        return problem.nearest(problem.points(), problem.as_stored(problem.lut))
