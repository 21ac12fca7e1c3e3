"""Indices of nonzero weights only, beside one bit for each weight that says which those are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from palette_core.plugins import Part, Refusal, StoredForm, TensorFacts
from palette_core.plugins.stored_forms import DENSE_FORM
from palette_core.tensors.operators import SPARSE_OP_NAME, SPARSE_PARTS, unpack_sparse
from palette_core.tensors.packing import pack_indices, packed_size, unpack_indices
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.stored import StoredTensor


@final
class SparseIndices(StoredForm):
    """Two parts, both 1-D uint8 bit streams; see `palette_core.tensors.packing`.

    ``nonzero_indices`` holds the indices of the nonzero weights in row-major order, ``mask`` one
    bit for each weight. Tables have entries for nonzeros only: zero is beside them.
    """

    parts = SPARSE_PARTS
    operator = SPARSE_OP_NAME
    holds_masks = True

    def encode(self, tensor: PalettizedTensor) -> Mapping[str, Tensor]:
        """Pack the mask, and the indices that it keeps."""
        mask = torch.ones_like(tensor.indices, dtype=torch.bool)
        if tensor.mask is not None:
            mask = tensor.mask
        return {
            "nonzero_indices": pack_indices(tensor.indices[mask], tensor.n_bits),
            "mask": pack_indices(mask.to(torch.uint8), 1),
        }

    def decode(self, stored: StoredTensor) -> PalettizedTensor:
        """Unpack the mask, then the indices; zeros get index 0."""
        return unpack_sparse(stored)

    def expects(self, stored: StoredTensor) -> Mapping[str, Part]:
        """Return the size of the mask; how many indices there are lies in it."""
        return {
            "nonzero_indices": Part(torch.uint8, (None,)),
            "mask": Part(torch.uint8, (packed_size(stored.index_count, 1),)),
        }

    def size_in_bits(self, stored: StoredTensor) -> int:
        """Bits of indices and mask, the last bytes not filled up."""
        count = int(unpack_indices(stored.parts["mask"], 1, stored.index_count).sum())
        return count * stored.n_bits + stored.index_count

    def size_unencoded(self, tensor: PalettizedTensor) -> int:
        """Bits of indices and mask, counted without packing them."""
        every = tensor.indices.numel()
        count = every if tensor.mask is None else int(tensor.mask.sum())
        return count * tensor.n_bits + every

    def check_support(self, facts: TensorFacts) -> Refusal | None:
        """Refuse vectors: zeros come one by one."""
        if facts.spec.cluster_dim == 1:
            return None
        return Refusal(
            "sparse weights have an index for each nonzero, and vectors one for several weights",
            facts.spec.stored_as(DENSE_FORM),
        )
