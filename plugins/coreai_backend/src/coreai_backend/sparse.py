"""Lowering of a sparse weight in a Core AI program: indices of nonzeros, and a mask of one bit.

``palette_core::depalettize_sparse`` turns into the operations of the dense form, with the mask
between look-up and scales. Which look-up it is, the tables say:

* one table, or tables of rows that have equally many nonzeros each: ``lut_to_dense`` on the indices
  as a list, then ``build_sparse_with_bitmask``;
* tables of any other grid, and of uneven rows: ``build_sparse_with_bitmask`` on the indices, then
  ``lut_to_sparse_with_bitmask``, which sees where in the weight each of them is. Every table keeps
  all of its entries for nonzeros, and no zero is stored.

Either ends in ``sparse_with_bitmask_to_dense``. Entries with a zero point are shifted and scaled
*before* they are looked up, as zeros would be shifted, too.

Vectors of nonzeros are looked up as a list: of these the runtime's ``lut_to_sparse_with_bitmask``
makes something else than its documentation says. Tables are of rows then; tables in turn whose rows
have equally many whole vectors take one ``lut_to_dense``, and each of the others one of its own,
from which values to spare are cut off. No table gives an entry up, and no zero is stored.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coreai_backend import ir
from coreai_backend.scaling import dequantized
from palette_core.tensors import StoredTensor, pack_indices, unpack_indices


def look_up(name: str, weight: StoredTensor) -> ir.Value:
    """Emit a sparse weight without its channel scales."""
    packed, lut = weight.parts, weight.lut
    mask = unpack_indices(packed["mask"], 1, math.prod(weight.shape)).reshape(weight.shape)
    count = int(mask.sum())
    if count == 0:
        return ir.zeros(weight.shape, weight.dtype)
    bitmask = ir.packed_constant(packed["mask"], weight.shape, 1, f"{name}.mask")
    by_row = lut.shape[-1] > 1 or _has_even_rows(mask, weight)
    if by_row:
        lut = lut.reshape(lut.shape[0], *lut.shape[-2:])
    if weight.lut_scale is None:
        lut = lut.to(weight.dtype)
    if lut.shape[-1] > 1:
        sparse = ir.build_sparse(_listed(name, weight, lut, mask), bitmask)
    else:
        indices = ir.packed_constant(
            packed["nonzero_indices"], [count], weight.n_bits, f"{name}.nonzero_indices"
        )
        table = _table(name, weight, lut)
        if by_row:
            sparse = ir.build_sparse(ir.lut_to_dense(indices, table, 0), bitmask)
        else:
            sparse = ir.lut_to_sparse(ir.build_sparse(indices, bitmask), table, weight.axis)
    dense = ir.sparse_to_dense(sparse)
    if weight.lut_scale is None or weight.lut_zero_point is not None:
        return dense
    return dequantized(dense, name, weight, weight.lut.shape[:-2])


def _table(name: str, weight: StoredTensor, lut: Tensor) -> ir.Value:
    """Emit tables, shifted and scaled where they have zero points."""
    table = ir.constant(lut, f"{name}.lut")
    if weight.lut_zero_point is None:
        return table
    return dequantized(table, name, weight, (*lut.shape[:-2], 1, 1))


def _listed(name: str, weight: StoredTensor, lut: Tensor, mask: Tensor) -> ir.Value:
    """Emit the nonzeros of a weight as a list, looked up vector by vector."""
    dim, tables = lut.shape[-1], len(lut)
    counts = mask.reshape(tables, -1).sum(1, dtype=torch.int64)
    vectors = (counts + dim - 1) // dim
    indices = unpack_indices(weight.parts["nonzero_indices"], weight.n_bits, int(vectors.sum()))
    ends = vectors.cumsum(0)
    made, runs = [], _runs(counts.tolist(), dim)
    for first, last in runs:
        which = indices[int(ends[first] - vectors[first]) : int(ends[last - 1])]
        part = name if len(runs) == 1 else f"{name}.{first}"
        constant = ir.packed_constant(
            pack_indices(which, weight.n_bits), [len(which)], weight.n_bits,
            f"{part}.nonzero_indices",
        )  # fmt: skip
        table = _table(part, _of_tables(weight, first, last), lut[first:last])
        values = ir.lut_to_dense(constant, table, 0)
        made.append(ir.first_of(values, int(counts[first:last].sum())))
    return ir.one_list(made)


def _runs(counts: list[int], dim: int) -> list[tuple[int, int]]:
    """Return tables, from one to another, that one look-up does for; those of nothing take none."""
    found: list[tuple[int, int]] = []
    for table, count in enumerate(counts):
        if count == 0:
            continue
        if found and found[-1][1] == table and counts[found[-1][0]] == count and count % dim == 0:
            found[-1] = found[-1][0], table + 1
        else:
            found.append((table, table + 1))
    return found


def _of_tables(weight: StoredTensor, first: int, last: int) -> StoredTensor:
    """Return a weight with scales and zero points of some of its tables alone."""
    scale, zero = weight.lut_scale, weight.lut_zero_point
    if scale is None or zero is None:
        return weight
    return weight._replace(lut_scale=scale[first:last], lut_zero_point=zero[first:last])


def _has_even_rows(mask: Tensor, weight: StoredTensor) -> bool:
    """Return whether tables are of rows, and each has as many nonzeros as the others."""
    grid = weight.lut.shape[:-2]
    if grid[0] != math.prod(grid):
        return False
    counts = mask.reshape(grid[0], -1).sum(1, dtype=torch.int64)
    return bool((counts == counts[0]).all())
