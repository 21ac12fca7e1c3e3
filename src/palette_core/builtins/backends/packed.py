"""Packed weights in torch, and a safetensors checkpoint of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import nn

from palette_core.errors import BackendError
from palette_core.plugins import Backend, Refusal, TensorFacts
from palette_core.storage import save_checkpoint
from palette_core.tensors import PalettizedTensor


@final
class PackedBackend(Backend):
    """Takes every spec; the finalized model runs in torch."""

    def __init__(self, options: Any) -> None:
        del options  # it has none

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Refuse nothing."""
        del facts
        return None

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Return the model as it is: packed weights are this backend's form."""
        del palettized
        return model

    def export(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any] | None,
        path: Path,
        dynamic_shapes: Any = None,
    ) -> Path:
        """Write the packed checkpoint. Weights do not depend on inputs, so none are needed.

        Raises:
            BackendError: ``dynamic_shapes`` are given; a checkpoint has no shapes of inputs.
        """
        del example_inputs
        if dynamic_shapes is not None:
            raise BackendError("backend 'packed' writes weights only; leave dynamic_shapes out")
        return save_checkpoint(model, path)
