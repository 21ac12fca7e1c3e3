"""The documented default while training: palettized weights stay, the rest trains."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from palette_core.plugins import TrainingProblem, TrainingStrategy


@final
class Frozen(TrainingStrategy):
    """Palettized weights get no gradient and do not change."""

    def __init__(self, options: Any) -> None:
        del options  # it has none

    def forward(self, problem: TrainingProblem) -> Tensor:
        """Return the decoded palette, which carries no gradient."""
        return problem.decode()
