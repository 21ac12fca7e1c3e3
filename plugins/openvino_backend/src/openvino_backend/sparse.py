"""Sparse weights in an OpenVINO model: a list of indices of nonzeros, and a mask of one bit.

The file holds no more than that and the tables. Where in the list an element finds its index
follows from how many nonzeros its block has before it (``CumSum``), in front of which those of
other blocks stand. The runtime computes the weight when it compiles the model, and keeps it dense.
"""

from __future__ import annotations

import torch
from openvino import opset16 as op

from openvino_backend.nodes import Constants, Output, integers, scalar
from openvino_backend.weights import Weight


def sparse(weight: Weight, indices: Output, entries: Output, constants: Constants) -> Output:
    """Return a weight without its channel scales.

    Args:
        weight: with a mask.
        indices: of the nonzeros, or vectors of them, block by block.
        entries: the tables, in the dtype of the weight.
        constants: of the model.
    """
    assert weight.mask is not None
    grid, dim, blocks = weight.grid, weight.dim, weight.n_blocks
    if not bool(weight.mask.any()):
        return constants.tensor(torch.zeros(weight.shape, dtype=weight.dtype))
    cut = [n for s, g in zip(weight.shape, grid, strict=True) for n in (g, s // g)]
    axes = [*range(0, len(cut), 2), *range(1, len(cut), 2)]
    mask = op.convert(constants.bits(weight.mask), "i32")
    mask = op.transpose(op.reshape(mask, integers(*cut), False), integers(*axes))
    mask = op.reshape(mask, integers(blocks, -1), False)
    vectors = weight.listed
    first = ((vectors.cumsum(0) - vectors) * dim).to(torch.int32)[:, None]
    turn = op.add(op.cum_sum(mask, scalar(1), exclusive=True), constants.tensor(first))
    # Zeros behind the last nonzero find nothing there.
    turn = op.minimum(turn, scalar(int(vectors.sum()) * dim - 1))
    code = op.gather(op.convert(indices, "i32"), op.divide(turn, scalar(dim)), integers(0))
    tables = torch.arange(blocks, dtype=torch.int32)[:, None] * weight.n_entries
    at = op.multiply(op.add(code, constants.tensor(tables)), scalar(dim))
    at = op.add(at, op.floor_mod(turn, scalar(dim)))
    values = op.gather(op.reshape(entries, integers(-1), False), at, integers(0))
    zero = constants.tensor(torch.zeros((), dtype=weight.dtype))
    made = op.select(op.convert(mask, "boolean"), values, zero)
    made = op.reshape(made, integers(*grid, *cut[1::2]), False)
    back = [axes.index(axis) for axis in range(len(axes))]
    made = op.transpose(made, integers(*back))
    return op.reshape(made, integers(*weight.shape), False).output(0)
