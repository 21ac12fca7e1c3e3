"""The kind *sensitivity metric*: what a palettized weight is predicted to cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from palette_core.plugins import types
from palette_core.plugins.entries import PluginEntry
from palette_core.plugins.markers import hookspec

ModelOutputs = Sequence[Sequence["types.Tensor"]]
"""Floating tensors that a model returns, by calibration batch: at least one for each."""


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
            or with the weight itself for None, always of the same shapes; given to metrics that
            declare ``needs_outputs``.
    """

    name: str
    weight: types.Tensor
    decoded: types.Tensor
    squares: types.Tensor | None = None
    moments: types.InputMoments | None = None
    outputs: Callable[[types.Tensor | None], ModelOutputs] | None = None


class SensitivityMetric(ABC):
    """Predicts what a palettized weight costs the model, for the allocation of a bits budget."""

    @abstractmethod
    def loss(self, candidate: Candidate) -> float:
        """Return the predicted loss: finite, not negative, and 0 where nothing changes.

        Losses of different weights are added, so they need a common unit.
        """


@dataclass(frozen=True, kw_only=True)
class SensitivityMetricEntry(PluginEntry):
    """A sensitivity metric.

    Attributes:
        factory: makes the metric from validated options.
        needs_squares: wants `Candidate.squares`.
        needs_moments: wants `Candidate.moments`.
        needs_outputs: wants `Candidate.outputs`, a run of the model for every candidate.
    """

    factory: Callable[[Any], SensitivityMetric]
    needs_squares: bool = False
    needs_moments: bool = False
    needs_outputs: bool = False


@hookspec
def palette_core_sensitivity_metrics() -> Iterable[SensitivityMetricEntry]:
    """Return the sensitivity metrics that this distribution provides.

    Example::

        from palette_core.plugins import (
            INTERFACE_VERSION,
            SensitivityMetric,
            SensitivityMetricEntry,
            hookimpl,
        )


        class Squares(SensitivityMetric):
            '''Sum of squared errors of the weight.'''

            def loss(self, candidate):
                error = candidate.weight.double() - candidate.decoded.double()
                return float(error.square().sum())


        @hookimpl
        def palette_core_sensitivity_metrics():
            return [
                SensitivityMetricEntry(
                    name="squares",
                    summary="sum of squared errors",
                    interface=INTERFACE_VERSION,
                    factory=lambda options: Squares(),
                )
            ]
    """
    raise AssertionError("hook specifications are never called")
