"""Sources of the inputs of weights while stage after stage becomes palettes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from palette_core.plugins import Consumption
from palette_core.statistics.activations.structure import Step


@dataclass(frozen=True)
class Given:
    """Inputs that one call multiplies a weight with.

    Attributes:
        name: of the weight.
        batch: number of the batch.
        call: number of the call in its run.
        what: input and view, or None where the operation is not one whose inputs are known.
        op_type: the operation.
        before: the input of that call in the unchanged model, where it is known.
        outputs: in place of that, what the weight makes of it, ``[T, R]`` float32: all calls that
            are shown of a step have it, or none.
    """

    name: str
    batch: int
    call: int
    what: Consumption | None
    op_type: str
    before: tuple[Tensor, ...] | None
    outputs: Tensor | None = None


class InputSource(Protocol):
    """Gives the inputs of every step's weights, one step after the other, stage by stage.

    How it comes by them (from runs that wait, from runs that start over, from files) is its own
    affair. Between `enter` and `leave` of a stage its steps are fed in order, and each step's
    weights have become palettes before the next is fed.
    """

    def enter(self, stage: str | None, names: Sequence[str]) -> None:
        """Prepare for a stage, or for a step outside of stages, and all of its weights."""

    def feed(self, step: Step, see: Callable[[Given], None]) -> None:
        """Show what the weights of a step are multiplied with, batch by batch, call by call.

        Inputs may be written to by others once ``see`` has returned.

        Raises:
            CalibrationError: the model failed on a batch.
        """

    def leave(self, stage: str | None, *, changed: bool) -> None:
        """Note that the weights of a stage are settled.

        Args:
            stage: its name, or None.
            changed: weights of it are others now than when their step was left.
        """

    def complete(self) -> None:
        """Note that there is no further stage."""

    def close(self) -> None:
        """Let go of everything; may be called at any time, also twice."""
