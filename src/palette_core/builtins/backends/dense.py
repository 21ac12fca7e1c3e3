"""Plain dense weights that hold the palettes' values: no palette is left in the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch
from torch import nn

from palette_core.builtins.backends.weights_only import WeightsOnlyBackend
from palette_core.storage import dense_state_dict, fold
from palette_core.tensors import PalettizedTensor


@final
class DenseBackend(WeightsOnlyBackend):
    """Takes every spec; the finalized model is an ordinary one."""

    name = "torch"

    def finalize(self, model: nn.Module, palettized: Mapping[str, PalettizedTensor]) -> nn.Module:
        """Make every weight a plain parameter again."""
        del palettized
        return fold(model)

    def write(self, model: nn.Module, path: Path) -> Path:
        """Write the state dict of the plain model; ``torch.load`` reads it."""
        torch.save(dense_state_dict(model), path)
        return path
