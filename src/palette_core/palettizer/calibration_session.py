"""The object that users hold inside of calibration mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor

from palette_core.errors import SensitivityError, StateError
from palette_core.palettizer.gauge import Gauge

LossFn = Callable[[Any, Any], Tensor]


@final
class Calibration:
    """The object that ``with palettizer.calibration_mode(...) as calibration`` gives.

    Attributes:
        steps: steps done.
    """

    def __init__(
        self, gauges: Sequence[Gauge], loss_fn: LossFn, restore: Callable[[], None]
    ) -> None:
        self._gauges = gauges
        self._loss_fn = loss_fn
        self._restore = restore
        self._open = True
        self._failed = False
        self.steps = 0

    def step(self, output: Any, target: Any) -> None:
        """Add the squares of the gradients of ``loss_fn(output, target)`` to the sensitivities.

        The gradient of a step is that of its whole batch, so the larger the batches, the less
        the squares say about single samples; few samples at a time are better. Buffers of the
        model, such as caches and positions in them, are afterwards as before the first step.

        Args:
            output: what the model returned, computed inside of this ``with`` block, with
                gradients.
            target: handed to ``loss_fn`` as it is.

        Raises:
            SensitivityError: the loss is no finite scalar, depends on no palettized weight, or a
                gradient is NaN or infinite; the message names the tensor and the step.
            StateError: the ``with`` block is left, or an earlier step has failed.
        """
        if not self._open:
            raise StateError("step() must be called inside of its calibration_mode() block")
        if self._failed:
            raise StateError(
                "an earlier step has failed, and its gradients are counted in part; leave "
                "calibration_mode() and enter it again"
            )
        number = self.steps + 1
        loss = _checked(self._loss_fn(output, target), number)
        self._failed = True
        for gauge in self._gauges:
            gauge.begin(number)
        loss.backward()  # type: ignore[no-untyped-call]
        if not [gauge for gauge in self._gauges if gauge.end()]:
            raise _independent(number)
        self._restore()
        self._failed = False
        self.steps = number

    def close(self) -> None:
        """Take no more steps, and let go of the model."""
        self._open = False
        for gauge in self._gauges:
            gauge.close()

    def check_complete(self) -> None:
        """Raise where there is nothing, or only part, to go by.

        Raises:
            StateError: there was no step.
            SensitivityError: a step failed.
        """
        if self._failed:
            raise SensitivityError(
                f"step {self.steps + 1} of the calibration failed, so the palettes stay as they "
                "were; calibrate again"
            )
        if self.steps == 0:
            raise StateError("calibration_mode() requires at least one call to step()")


def _checked(loss: Any, number: int) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise SensitivityError(
            f"loss_fn must return a scalar, got a tensor of shape {tuple(loss.shape)}; "
            "take its mean or its sum"
        )
    value = float(loss.detach())
    if not math.isfinite(value):
        raise SensitivityError(f"the loss is {value} in step {number}; look at that batch")
    if not loss.requires_grad:
        raise _independent(number)
    return loss


def _independent(number: int) -> SensitivityError:
    return SensitivityError(
        f"the loss of step {number} does not depend on any palettized weight; run the model "
        "that is calibrated, inside of the with block, without torch.no_grad() or detach()"
    )
