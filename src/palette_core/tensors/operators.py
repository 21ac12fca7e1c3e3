"""The torch operators that stand for a palettized weight inside a model or a graph.

``palette_core::depalettize`` decodes the form that is stored by default, indices of n bits as one
dense little-endian bit stream, ``palette_core::depalettize_sparse`` that of nonzeros alone; export
backends lower them to their runtime's own look-up.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from palette_core.tensors.nonzeros import codes_in_use
from palette_core.tensors.packing import unpack_indices
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import INDICES, StoredTensor, define_operator

OP_NAME = "palette_core::depalettize"
SPARSE_OP_NAME = "palette_core::depalettize_sparse"
SPARSE_PARTS = ("nonzero_indices", "mask")


def unpack(stored: StoredTensor) -> PalettizedTensor:
    """Return the weight with its packed indices, ``stored.parts["indices"]``, unpacked.

    Raises:
        ValueError: the part has not exactly the bytes that the indices take.
    """
    codes = unpack_indices(stored.parts["indices"], stored.n_bits, stored.index_count)
    return stored.with_indices(codes.reshape(stored.index_shape))


def unpack_sparse(stored: StoredTensor) -> PalettizedTensor:
    """Return the weight with its packed ``mask`` and ``nonzero_indices``; zeros get index 0.

    Raises:
        ValueError: a part has not exactly the bytes that it takes.
    """
    mask = unpack_indices(stored.parts["mask"], 1, math.prod(stored.shape))
    mask = mask.to(torch.bool).reshape(stored.shape)
    indices = torch.zeros(stored.index_shape, dtype=torch.uint8, device=mask.device)
    found, packed = stored.with_indices(indices), stored.parts["nonzero_indices"]
    if found.cluster_dim == 1:
        count = int(mask.sum())
        indices[mask] = unpack_indices(packed, stored.n_bits, count)
        return found if count == mask.numel() else replace(found, mask=mask)
    layout = found.layout
    used = codes_in_use(mask, layout)
    codes = layout.split_indices(indices).clone()
    codes[used] = unpack_indices(packed, stored.n_bits, int(used.sum()))
    return replace(found, indices=layout.merge_codes(codes).contiguous(), mask=mask)


def _dense(stored: StoredTensor) -> Tensor:
    from palette_core.tensors import products  # imports numba

    decoded = products.decode(stored)
    return unpack(stored).decode() if decoded is None else decoded


depalettize = define_operator(OP_NAME, INDICES, unpack, dense=_dense)
depalettize_sparse = define_operator(SPARSE_OP_NAME, SPARSE_PARTS, unpack_sparse)
