"""Measures the gradient of one palettized weight, without touching the weight itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from palette_core.errors import SensitivityError, StateError
from palette_core.palettizer.palettized_weight import PalettizedWeight
from palette_core.statistics.gradients.squares import SquareSum
from palette_core.storage.sites import PaletteSite


@final
class Gauge:
    """Stands an alias in for a dense weight, and squares the gradients that reach it.

    The alias is a leaf that shares the weight's memory and requires a gradient. So the weight's
    own flag, gradient and hooks have no part in the calibration, frozen weights are
    measured like others, and buffers like parameters. Each gradient is squared and freed when it
    arrives.

    Reentrant checkpointing runs a backward pass of its own for each checkpoint. There the gradient
    of a weight with several uses comes in several parts, which are added up before they are
    squared, at the end of the step. That is foreseen in the forward pass: it runs the inside of
    such checkpoints without gradients.

    Args:
        site: where the weight's palette stands.
        written: whether the model writes to the weight when it runs; the alias is then a copy.
        device: where to keep the sum of squares; None means beside the weight.
    """

    def __init__(
        self, site: PaletteSite[PalettizedWeight], *, written: bool, device: torch.device | None
    ) -> None:
        self.name = site.name
        self.item = site.palette
        self.squares = SquareSum(device)
        self._written = written
        self._step: int | None = None  # while its backward pass runs
        self._source: Tensor | None = None
        self._alias: Tensor | None = None
        self._forget_step()

    def hook(self) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor | None]:
        """Return a forward hook for the palette; a function, so that copies do not copy me."""

        def stand_in(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
            del output
            return self._stand_in(args[0]) if module is self.item else None

        return stand_in

    def begin(self, step: int) -> None:
        """Take the gradients that arrive from now on as those of a step."""
        self._step = step

    def end(self) -> bool:
        """Close the step; returns whether a gradient has arrived in it."""
        arrived = self._arrived
        if self._sum is not None:
            self._square(self._sum)
        self._forget_step()
        return arrived

    def close(self) -> None:
        """Let go of the weight."""
        self._source = self._alias = None
        self._forget_step()

    def _forget_step(self) -> None:
        self._step = None
        self._uses = 0
        self._apart = False  # a use without gradients, or through another alias
        self._arrived = False
        self._sum: Tensor | None = None

    def _stand_in(self, weight: Tensor) -> Tensor:
        fresh = (
            self._alias is None
            or weight is not self._source
            or (not self._written and weight.data_ptr() != self._alias.data_ptr())
        )
        if self._step is None:
            self._apart |= not torch.is_grad_enabled() or (fresh and self._uses > 0)
            self._uses += 1
        if fresh:
            with torch.no_grad():
                alias = weight.detach()
                alias = alias.clone() if self._written else alias
            alias.requires_grad_()
            alias.register_post_accumulate_grad_hook(self._take)  # type: ignore[no-untyped-call]
            self._source, self._alias = weight, alias
        assert self._alias is not None
        return self._alias

    def _take(self, alias: Tensor) -> None:
        gradient, alias.grad = alias.grad, None
        if gradient is None:
            return
        if self._step is None:
            raise StateError(
                f"a gradient reached {self.name} outside of step(); in calibration_mode(), "
                "step(output, target) runs the backward pass"
            )
        if self._apart and self._uses > 1:
            self._sum = gradient if self._sum is None else self._sum.add_(gradient)
        elif self._arrived:
            raise SensitivityError(
                f"the gradient of {self.name} came in parts in step {self._step}, and the first "
                "is squared already; checkpoint with use_reentrant=False"
            )
        else:
            self._square(gradient)
        self._arrived = True

    def _square(self, gradient: Tensor) -> None:
        with torch.no_grad():
            finite = self.squares.add(gradient)
        if not finite:
            raise SensitivityError(
                f"the gradient of {self.name} is NaN or infinite in step {self._step}; "
                "look at that batch, or lower the scale of the loss"
            )
