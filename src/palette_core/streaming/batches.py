"""Calibration batches of a checkpoint, and what makes two runs find the same."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from palette_core._common.pytrees import deep_copy
from palette_core.errors import CalibrationError
from palette_core.model import ExampleInputs
from palette_core.storage.checksums import checksum
from palette_core.streaming.skeleton import Skeleton


@dataclass(frozen=True)
class BlockCalibration:
    """Calibration batches of a checkpoint, and the model that takes them.

    Attributes:
        batches: the model's inputs.
        skeleton: the model.
        compensate: aim at the outputs of the unchanged model rather than at its weights.
    """

    batches: tuple[ExampleInputs, ...]
    skeleton: Skeleton
    compensate: bool = True

    def __post_init__(self) -> None:
        if not self.batches:
            raise CalibrationError("calibration needs at least one batch, got none")
        for number, batch in enumerate(self.batches):
            try:
                deep_copy(batch)
            except TypeError as error:
                raise CalibrationError(
                    f"calibration batch {number} is run several times, always from the same "
                    f"inputs: {error}; give as a tensor, or as a list, what it holds"
                ) from error

    def identity(self) -> dict[str, Any]:
        """Return what has to be the same for two runs to find the same, as JSON values."""
        told = "; ".join(_described(batch) for batch in self.batches)
        return {
            "batches": {"count": len(self.batches), "crc32": f"{zlib.crc32(told.encode()):08x}"},
            "compensate": self.compensate,
            "model": type(self.skeleton.model).__name__,
            "blocks": len(self.skeleton.block_names()),
            "torch": torch.__version__,
        }


def _described(batch: ExampleInputs) -> str:
    leaves, form = tree_flatten(batch)
    told = [checksum(x.cpu()) if isinstance(x, Tensor) else repr(x) for x in leaves]
    return f"{form}: {', '.join(told)}"
