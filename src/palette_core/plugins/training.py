"""What training strategies implement."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from palette_core.plugins.training_problem import TrainingProblem


class TrainingStrategy(ABC):
    """What a palettized weight is while the model trains.

    A strategy keeps no state of its own: all that it may depend on, the tables and the count of
    steps included, is in the problem, and in the model's ``state_dict``. So training resumes where
    it stopped, a forward pass can be repeated (gradient checkpointing), and ranks that hold equal
    weights agree.
    """

    @abstractmethod
    def forward(self, problem: TrainingProblem) -> Tensor:
        """Return the weight that the layer uses in training mode.

        Called with autocast off. The result has the weight's shape and dtype, is finite, and
        differentiable as the strategy sees fit.
        """

    def harden(self, problem: TrainingProblem) -> Tensor | None:
        """Return the assignment that evaluation and `finalize` use, ``[B, N]`` uint8.

        Its entries are ``problem.as_stored(problem.lut)``. None, the default, keeps the present
        assignment. Called without gradients, once anything has been trained, and any number of
        times: the same weight and tables must give the same assignment, at any step, and whether
        or not it is the present one already.
        """
        del problem
        return None

    def advance(self, problem: TrainingProblem) -> Tensor | None:
        """Return the tables from which the next step starts, ``[B, K, D]`` floating.

        Called without gradients after every training step, for entries that declare
        ``moves_lut``. None, the default, leaves them as they are. Where several ranks train,
        each calls it for itself: the same problem must give the same tables.
        """
        del problem
        return None
