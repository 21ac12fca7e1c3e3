"""Calibration batches, how they are used, and what the unchanged model showed on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from palette_core.errors import CalibrationError
from palette_core.model import ExampleInputs, as_inputs
from palette_core.statistics.activations.collect import CallKey
from palette_core.tensors.moments import InputMoments

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class InputCalibration:
    """Calibration batches, and how they are used.

    Attributes:
        batches: model inputs.
        sequential: take the moments of a stage from a model whose stages before it are
            palettized already.
        compensate: in sequential mode, aim at the outputs of the unchanged model rather than at
            its weights.
        stages: names of the stages; None finds them.
        held_out: model inputs by which each stage is judged; empty trusts every result.
        loss: ``loss(output, batch)`` whose squared gradient weighs the moments; None is plain.
        output_groups: groups of output channels with a weighting of their own.
        folder: an existing one; matrices are kept in a fresh folder inside instead of in memory.
    """

    batches: tuple[ExampleInputs, ...]
    sequential: bool = False
    compensate: bool = True
    stages: tuple[str, ...] | None = None
    held_out: tuple[ExampleInputs, ...] = ()
    loss: Loss | None = None
    output_groups: int = 4
    folder: Path | None = None

    def __post_init__(self) -> None:
        if not self.batches:
            raise CalibrationError("calibration needs at least one batch, got none")
        if self.output_groups < 1:
            raise CalibrationError(f"output_groups must be at least 1, got {self.output_groups}")
        if self.folder is not None and not self.folder.is_dir():
            raise CalibrationError(f"folder: {self.folder} is no existing folder; make it first")


def batches_of(items: Any, what: str = "calibration") -> tuple[ExampleInputs, ...]:
    """Return all batches as model inputs; see `as_inputs`.

    Args:
        items: the batches.
        what: which ones they are, for messages.

    Raises:
        TypeError: they cannot be iterated over, or one of them is none.
    """
    if not isinstance(items, Iterable) or isinstance(items, (Tensor, Mapping, str)):
        raise TypeError(
            f"{what} batches must be an iterable of model inputs, such as a list of them, got "
            f"{type(items).__name__}"
        )
    return tuple(as_inputs(item, f"{what} batch {n}") for n, item in enumerate(items))


@dataclass
class Findings:
    """Findings of calibration before anything was clustered.

    Attributes:
        moments: by name of the plan.
        missing: why a weight has none.
        weights: how much input vectors count, by call; None is equally.
        names: of all plans that were looked at.
    """

    moments: dict[str, InputMoments] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    weights: dict[CallKey, Tensor] | None = None
    names: frozenset[str] = frozenset()
