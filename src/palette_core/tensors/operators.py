"""The torch operator that stands for a palettized weight inside a model or a graph.

``palette_core::depalettize`` decodes the form that is stored by default, indices of n bits as one
dense little-endian bit stream; export backends lower it to their runtime's own look-up.
"""

from __future__ import annotations

from palette_core.tensors.packing import unpack_indices
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import INDICES, StoredTensor, define_operator

OP_NAME = "palette_core::depalettize"


def unpack(stored: StoredTensor) -> PalettizedTensor:
    """Return the weight with its packed indices, ``stored.parts["indices"]``, unpacked.

    Raises:
        ValueError: the part has not exactly the bytes that the indices take.
    """
    codes = unpack_indices(stored.parts["indices"], stored.n_bits, stored.index_count)
    return stored.with_indices(codes.reshape(stored.index_shape))


depalettize = define_operator(OP_NAME, INDICES, unpack)
