"""Training of the tables alone: assignments stay as clustering found them."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from palette_core.plugins import TrainingProblem, TrainingStrategy
from palette_core.tensors import look_up


@final
class Tables(TrainingStrategy):
    """Each weight keeps its code; entries learn, weights do not.

    An entry's gradient is the sum over the weights that it stands for (Han et al., "Deep
    Compression", arXiv 1510.00149, section 3.3). What ``gptq`` and ``lnq`` chose is kept, which
    is not the nearest entry; Egiazarian et al., "AQLM" (arXiv 2401.06118, section 3.4) tune their
    codebooks in the same way.
    """

    def __init__(self, options: Any) -> None:
        del options  # it has none

    def forward(self, problem: TrainingProblem) -> Tensor:
        """Return the entries that the codes pick."""
        entries = problem.as_stored(problem.lut)
        return problem.merge(look_up(problem.points().detach(), entries, problem.codes()))
