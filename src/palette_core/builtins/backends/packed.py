"""Packed weights in torch, and a safetensors checkpoint of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import final

from torch import nn

from palette_core.builtins.backends.weights_only import WeightsOnlyBackend
from palette_core.storage import save_checkpoint
from palette_core.tensors import PalettizedTensor


@final
class PackedBackend(WeightsOnlyBackend):
    """Takes every spec; the finalized model runs in torch."""

    name = "packed"

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Return the model as it is: packed weights are this backend's form."""
        del palettized
        return model

    def write(self, model: nn.Module, path: Path) -> Path:
        """Write the packed checkpoint."""
        return save_checkpoint(model, path)
