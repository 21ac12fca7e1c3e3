"""Indices of nonzero weights only, beside one bit for each weight that says which those are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from palette_core.plugins import Part, Refusal, StoredForm, TensorFacts
from palette_core.plugins.stored_forms import DENSE_FORM
from palette_core.tensors.nonzeros import codes_in_use
from palette_core.tensors.operators import SPARSE_OP_NAME, SPARSE_PARTS, unpack_sparse
from palette_core.tensors.packing import pack_indices, packed_size
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import StoredTensor


@final
class SparseIndices(StoredForm):
    """Two parts, both 1-D uint8 bit streams; see `palette_core.tensors.packing`.

    ``nonzero_indices`` holds the indices of the nonzero weights in row-major order, ``mask`` one
    bit for each weight. Tables have entries for nonzeros only: zero is beside them. With entries of
    D values, D nonzeros that follow each other in a block share an index, and those of one block
    stand before those of the next; the last of a block may have values to spare.
    """

    parts = SPARSE_PARTS
    operator = SPARSE_OP_NAME

    def encode(self, tensor: PalettizedTensor) -> Mapping[str, Tensor]:
        """Pack the mask, and the indices that it keeps."""
        mask = tensor.mask
        if mask is None and tensor.cluster_dim > 1:
            raise ValueError("vectors of a weight without a mask are no vectors of its nonzeros")
        if mask is None:
            mask = torch.ones_like(tensor.indices, dtype=torch.bool)
        return {
            "nonzero_indices": pack_indices(tensor.stored_indices(), tensor.n_bits),
            "mask": pack_indices(mask.to(torch.uint8), 1),
        }

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        """Unpack the mask, then the indices; zeros get index 0."""
        return unpack_sparse(stored)

    def expects(self, stored: StoredTensor) -> Mapping[str, Part]:
        """Return the size of the mask; how many indices there are lies in it."""
        return {
            "nonzero_indices": Part(torch.uint8, (None,)),
            "mask": Part(torch.uint8, (packed_size(math.prod(stored.shape), 1),)),
        }

    def size_in_bits(self, stored: StoredTensor) -> int:
        """Bits of indices and mask, the last bytes not filled up."""
        return self.size_unencoded(unpack_sparse(stored))

    def size_unencoded(self, tensor: PalettizedTensor) -> int:
        """Bits of indices and mask, counted without packing them."""
        count = tensor.indices.numel()
        if tensor.mask is not None:
            count = int(codes_in_use(tensor.mask, tensor.layout).sum())
        return count * tensor.n_bits + math.prod(tensor.shape)

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Refuse vectors where zeros are not looked for: those are not of the nonzeros."""
        spec = facts.spec
        if spec.cluster_dim == 1 or spec.sparsity_detection_threshold is not None:
            return None
        return Refusal("vectors of nonzeros need a mask", spec.stored_as(DENSE_FORM))
