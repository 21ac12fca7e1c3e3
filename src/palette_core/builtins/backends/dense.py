"""Plain dense weights that hold the palettes' values: no palette is left in the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from palette_core.errors import BackendError
from palette_core.plugins import Backend, Refusal, TensorFacts
from palette_core.storage import dense_state_dict, fold
from palette_core.tensors import PalettizedTensor


@final
class DenseBackend(Backend):
    """Takes every spec; the finalized model is an ordinary one."""

    def __init__(self, options: Any) -> None:
        del options  # it has none

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Refuse nothing."""
        del facts
        return None

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Make every weight a plain parameter again."""
        del palettized
        return fold(model)

    def export(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None,
        path: Path,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Write the state dict of the plain model; ``torch.load`` reads it. No inputs are needed.

        Raises:
            BackendError: ``dynamic_shapes`` are given; a state dict has no shapes of inputs.
        """
        del example_inputs
        if dynamic_shapes is not None:
            raise BackendError("backend 'torch' writes weights only; leave dynamic_shapes out")
        torch.save(dense_state_dict(model), path)
        return path
