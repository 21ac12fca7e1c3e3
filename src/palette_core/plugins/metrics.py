"""What sensitivity metrics implement, by which a bits budget is spent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from palette_core.tensors.moments import InputMoments

ModelOutputs = Sequence[Sequence[Tensor]]
"""Floating tensors that a model returns, by calibration batch."""


@dataclass(frozen=True)
class Candidate:
    """One way to palettize one weight, for a metric to judge. Nothing in it may be written to.

    Attributes:
        name: fully qualified name of the weight's first owner.
        weight: the dense weight.
        decoded: what would stand for it, of the same shape and dtype.
        squares: float32 of the weight's shape: mean squared gradients of the loss; given to
            metrics that declare ``needs_squares``.
        moments: of the layer's input; given to metrics that declare ``needs_moments``.
        outputs: the model's outputs on calibration batches with a tensor in place of the weight,
            or with the weight itself for None; given to metrics that declare ``needs_outputs``.
    """

    name: str
    weight: Tensor
    decoded: Tensor
    squares: Tensor | None = None
    moments: InputMoments | None = None
    outputs: Callable[[Tensor | None], ModelOutputs] | None = None


class SensitivityMetric(ABC):
    """Predicts what a palettized weight costs the model, for the allocation of a bits budget."""

    @abstractmethod
    def loss(self, candidate: Candidate) -> float:
        """Return the predicted loss: finite, not negative, and 0 where nothing changes.

        Losses of different weights are added, so they need a common unit.
        """
