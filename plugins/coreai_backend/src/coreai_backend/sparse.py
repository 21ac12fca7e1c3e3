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
makes something else than its documentation says. Tables are of rows then, and where these have
equally many whole vectors one ``lut_to_dense`` does. Where they do not, the smaller is written of:

* rows that are longer than the weight's: the mask goes on behind each of them, with as many ones as
  it takes for all to have equally many, and what lies there is cut off at the end;
* a ``lut_to_dense`` for each table, from which values to spare are cut off.

No table gives an entry up, and no zero is stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from coreai_backend import ir
from coreai_backend.scaling import dequantized
from palette_core.tensors import StoredTensor, pack_indices, unpack_indices

_BITS = 8 * 300  # that the operations of one look-up take in a file, about


def look_up(name: str, weight: StoredTensor) -> ir.Value:
    """Emit a sparse weight without its channel scales."""
    packed, lut = weight.parts, weight.lut
    mask = unpack_indices(packed["mask"], 1, math.prod(weight.shape)).reshape(weight.shape)
    count = int(mask.sum())
    if count == 0:
        return ir.zeros(weight.shape, weight.dtype)
    by_row = lut.shape[-1] > 1 or _has_even_rows(mask, weight)
    if by_row:
        lut = lut.reshape(lut.shape[0], *lut.shape[-2:])
    if weight.lut_scale is None:
        lut = lut.to(weight.dtype)
    if lut.shape[-1] > 1:
        dense = _vectors(name, weight, lut, mask)
    else:
        dense = ir.sparse_to_dense(_scalars(name, weight, lut, count, listed=by_row))
    if weight.lut_scale is None or weight.lut_zero_point is not None:
        return dense
    return dequantized(dense, name, weight, weight.lut.shape[:-2])


def _scalars(name: str, weight: StoredTensor, lut: Tensor, count: int, *, listed: bool) -> ir.Value:
    indices = ir.packed_constant(
        weight.parts["nonzero_indices"], [count], weight.n_bits, f"{name}.nonzero_indices"
    )
    bitmask, table = _mask(name, weight), _table(name, weight, lut)
    if listed:
        return ir.build_sparse(ir.lut_to_dense(indices, table, 0), bitmask)
    return ir.lut_to_sparse(ir.build_sparse(indices, bitmask), table, weight.axis)


def _mask(name: str, weight: StoredTensor) -> ir.Value:
    return ir.packed_constant(weight.parts["mask"], weight.shape, 1, f"{name}.mask")


def _table(name: str, weight: StoredTensor, lut: Tensor) -> ir.Value:
    """Emit tables, shifted and scaled where they have zero points."""
    table = ir.constant(lut, f"{name}.lut")
    if weight.lut_zero_point is None:
        return table
    return dequantized(table, name, weight, (*lut.shape[:-2], 1, 1))


def _vectors(name: str, weight: StoredTensor, lut: Tensor, mask: Tensor) -> ir.Value:
    """Emit a weight of vectors of nonzeros, by what takes the fewest bits."""
    dim, rows = lut.shape[-1], mask.reshape(len(lut), -1)
    counts = rows.sum(1, dtype=torch.int64)
    vectors = (counts + dim - 1) // dim
    indices = unpack_indices(weight.parts["nonzero_indices"], weight.n_bits, int(vectors.sum()))
    parts = torch.split(indices, vectors.tolist())
    runs = _runs(counts.tolist(), dim)
    spare = int(vectors.max()) * dim - counts
    more = weight.n_bits * int((vectors.max() - vectors).sum()) + len(rows) * int(spare.max())
    more += int((counts == 0).sum()) * lut[0].numel() * lut.element_size() * 8
    if more + _BITS < (len(runs) - 1) * _BITS:
        return _padded(name, weight, lut, rows, parts, spare)
    made = []
    for first, last in runs:
        part = name if len(runs) == 1 else f"{name}.{first}"
        table = _table(part, _of_tables(weight, first, last), lut[first:last])
        values = ir.lut_to_dense(_indices(part, weight, torch.cat(parts[first:last])), table, 0)
        made.append(ir.first_of(values, int(counts[first:last].sum())))
    return ir.sparse_to_dense(ir.build_sparse(ir.one_list(made), _mask(name, weight)))


def _padded(
    name: str,
    weight: StoredTensor,
    lut: Tensor,
    rows: Tensor,
    parts: Sequence[Tensor],
    spare: Tensor,
) -> ir.Value:
    """Emit vectors in rows that are longer than the weight's, and cut them to its shape.

    Args:
        name: of the weight.
        weight: stored.
        lut: its tables ``[B, K, D]``.
        rows: the mask of each table's elements, ``[B, M]``.
        parts: indices, table by table.
        spare: ``[B]``, how many values each table lacks of those of the fullest one.
    """
    width = int(spare.max())
    behind = torch.arange(width) < spare[:, None]
    mask = ir.packed_constant(
        pack_indices(torch.cat([rows, behind], 1).to(torch.uint8), 1),
        [len(rows), rows.shape[1] + width], 1, f"{name}.{ir.LONGER_MASK}",
    )  # fmt: skip
    indices = _indices(name, weight, pad_sequence(list(parts), batch_first=True).flatten())
    values = ir.lut_to_dense(indices, _table(name, weight, lut), 0)
    dense = ir.sparse_to_dense(ir.build_sparse(values, mask))
    return ir.reshape(ir.first_columns(dense, rows.shape[1]), weight.shape)


def _indices(name: str, weight: StoredTensor, indices: Tensor) -> ir.Value:
    return ir.packed_constant(
        pack_indices(indices, weight.n_bits), [len(indices)], weight.n_bits,
        f"{name}.nonzero_indices",
    )  # fmt: skip


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
