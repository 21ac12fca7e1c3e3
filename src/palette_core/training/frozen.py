"""The documented default while training: palettized weights stay, the rest trains."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from palette_core.interfaces import TrainingStrategy
from palette_core.palettized import PalettizedTensor


@final
class Frozen(TrainingStrategy):
    """Palettized weights get no gradient and do not change."""

    def __init__(self, options: Any) -> None:
        del options  # it has none

    def forward(self, weight: Tensor, palettized: PalettizedTensor, decoded: Tensor) -> Tensor:
        """Return ``decoded``, which carries no gradient."""
        del weight, palettized
        return decoded
