"""Lowering of a sparse weight in a Core AI program: indices of nonzeros, and a mask of one bit.

``palette_core::depalettize_sparse`` turns into the operations of the dense form, with the mask
between look-up and scales. Which look-up it is, the tables say:

* one table, or tables of rows that have equally many nonzeros each: ``lut_to_dense`` on the indices
  as a list, then ``build_sparse_with_bitmask``;
* tables of any other grid, and of uneven rows: ``build_sparse_with_bitmask`` on the indices, then
  ``lut_to_sparse_with_bitmask``, which sees where in the weight each of them is. Every table keeps
  all of its entries for nonzeros, and no zero is stored.

Either ends in ``sparse_with_bitmask_to_dense``. Entries with a zero point are shifted and scaled
*before* they are looked up, as zeros would be shifted, too. Scalars only: of vectors the runtime
makes something else than the documentation of ``lut_to_sparse_with_bitmask`` says.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coreai_backend import ir
from coreai_backend.scaling import dequantized
from palette_core.tensors import StoredTensor, unpack_indices


def look_up(name: str, weight: StoredTensor) -> ir.Value:
    """Emit a sparse weight without its channel scales."""
    packed, lut, zero_point = weight.parts, weight.lut, weight.lut_zero_point
    mask = unpack_indices(packed["mask"], 1, weight.index_count).reshape(weight.index_shape)
    count = int(mask.sum())
    if count == 0:
        return ir.zeros(weight.index_shape, weight.dtype)
    indices = ir.packed_constant(
        packed["nonzero_indices"], [count], weight.n_bits, f"{name}.nonzero_indices"
    )
    bitmask = ir.packed_constant(packed["mask"], weight.index_shape, 1, f"{name}.mask")
    by_row = _has_even_rows(mask, weight)
    if by_row:
        lut = lut.reshape(lut.shape[0], *lut.shape[-2:])
    if weight.lut_scale is None:
        lut = lut.to(weight.dtype)
    table = ir.constant(lut, f"{name}.lut")
    if zero_point is not None:
        table = dequantized(table, name, weight, (*lut.shape[:-2], 1, 1))
    if by_row:
        sparse = ir.build_sparse(ir.lut_to_dense(indices, table, 0), bitmask)
    else:
        sparse = ir.lut_to_sparse(ir.build_sparse(indices, bitmask), table, weight.axis)
    dense = ir.sparse_to_dense(sparse)
    if weight.lut_scale is None or zero_point is not None:
        return dense
    return dequantized(dense, name, weight, weight.lut.shape[:-2])


def _has_even_rows(mask: Tensor, weight: StoredTensor) -> bool:
    """Return whether tables are of rows, and each has as many nonzeros as the others."""
    grid = weight.lut.shape[:-2]
    if grid[0] != math.prod(grid):
        return False
    counts = mask.reshape(grid[0], -1).sum(1, dtype=torch.int64)
    return bool((counts == counts[0]).all())
