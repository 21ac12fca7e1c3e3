"""Every index of a weight, packed to n bits in one dense little-endian bit stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from palette_core.plugins import Part, StoredForm
from palette_core.tensors.operators import OP_NAME, unpack
from palette_core.tensors.packing import packed_size
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import INDICES, StoredTensor


@final
class DenseIndices(StoredForm):
    """One part, ``indices``: 1-D uint8; see `palette_core.tensors.packing`."""

    parts = INDICES
    operator = OP_NAME

    def encode(self, tensor: PalettizedTensor) -> Mapping[str, Tensor]:
        """Pack the indices."""
        return {"indices": tensor.packed_indices()}

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        """Unpack the indices."""
        return unpack(stored)

    def expects(self, stored: StoredTensor) -> Mapping[str, Part]:
        """Return the size of the bit stream."""
        return {"indices": Part(torch.uint8, (packed_size(stored.index_count, stored.n_bits),))}

    def size_in_bits(self, stored: StoredTensor) -> int:
        """Bits of all indices, the last byte not filled up."""
        return stored.index_count * stored.n_bits

    def size_unencoded(self, tensor: PalettizedTensor) -> int:
        """Bits of all indices, counted without packing them."""
        return tensor.indices.numel() * tensor.n_bits
