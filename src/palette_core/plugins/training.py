"""The kind *training strategy*: what a palettized weight is while the model trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from palette_core.plugins import types
from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.markers import hookspec


class TrainingStrategy(ABC):
    """Rule for what a palettized weight is while the model trains.

    A strategy keeps no state of its own: all that it may depend on, the tables and the count of
    steps included, is in the problem, and in the model's ``state_dict``. So training resumes where
    it stopped, a forward pass can be repeated (gradient checkpointing), and ranks that hold equal
    weights agree.
    """

    @abstractmethod
    def forward(self, problem: types.TrainingProblem) -> types.Tensor:
        """Return the weight that the layer uses in training mode.

        Called with autocast off. The result has the weight's shape and dtype, is finite, and
        differentiable as the strategy sees fit.
        """

    def harden(self, problem: types.TrainingProblem) -> types.Tensor | None:
        """Return the assignment that evaluation and `finalize` use, ``[B, N]`` uint8.

        Its entries are ``problem.as_stored(problem.lut)``. None, the default, keeps the present
        assignment. Called without gradients, once anything has been trained, and any number of
        times: the same weight and tables must give the same assignment, at any step, and whether
        or not it is the present one already.
        """
        del problem
        return None

    def advance(self, problem: types.TrainingProblem) -> types.Tensor | None:
        """Return the tables from which the next step starts, ``[B, K, D]`` floating.

        Called without gradients after every training step, for entries that declare
        ``moves_lut``. None, the default, leaves them as they are. Where several ranks train,
        each calls it for itself: the same problem must give the same tables.
        """
        del problem
        return None


@dataclass(frozen=True, kw_only=True)
class TrainingStrategyEntry(PluginEntry):
    """A training strategy.

    Attributes:
        factory: makes the strategy from validated options.
        trains_lut: the tables become parameters of the model, which the optimizer trains.
        moves_lut: the tables are what ``advance`` makes of them after each step.
    """

    factory: Callable[[Any], TrainingStrategy]
    trains_lut: bool = False
    moves_lut: bool = False

    def __post_init__(self) -> None:
        if self.trains_lut and self.moves_lut:
            raise ValueError(
                f"{self.name!r} declares both trains_lut and moves_lut; one of them moves a table"
            )


@hookspec
def palette_core_training_strategies() -> Iterable[TrainingStrategyEntry]:
    """Return the training strategies that this distribution provides.

    Example::

        from palette_core.plugins import (
            INTERFACE_VERSION,
            TrainingStrategy,
            TrainingStrategyEntry,
            hookimpl,
        )


        class Still(TrainingStrategy):
            '''The weight is what its palette decodes to, and learns nothing.'''

            def forward(self, problem):
                return problem.decode()


        @hookimpl
        def palette_core_training_strategies():
            return [
                TrainingStrategyEntry(
                    name="still",
                    summary="palettized weights do not train",
                    interface=INTERFACE_VERSION,
                    factory=lambda options: Still(),
                )
            ]
    """
    raise AssertionError("hook specifications are never called")
