"""Backends that store weights alone: every spec is taken, and inputs are of no account."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from palette_core.errors import BackendError
from palette_core.plugins import Backend, Refusal, TensorFacts


class WeightsOnlyBackend(Backend):
    """Writes what a state dict holds, for torch to load.

    Attributes:
        name: of the entry.
    """

    name: ClassVar[str]

    def __init__(self, options: Any) -> None:
        del options  # it has none

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Refuse nothing."""
        del facts
        return None

    def export(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None,
        path: Path,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Write the weights. They do not depend on inputs, so none are needed.

        Raises:
            BackendError: ``dynamic_shapes`` are given, and weights have no shapes of inputs.
        """
        del example_inputs
        if dynamic_shapes is not None:
            raise BackendError(
                f"backend {self.name!r} writes weights only; leave dynamic_shapes out"
            )
        return self.write(model, path)

    @abstractmethod
    def write(self, model: nn.Module, path: Path) -> Path:
        """Write the weights of a finalized model, and return the path."""
