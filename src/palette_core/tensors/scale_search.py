"""Search for the scales that suit given tables of scalars, in host memory."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.threads import map_threads, parts_of
from palette_core.tensors._scale_kernel import CELLS, make_cells, search_scales
from palette_core.tensors.layout import BlockLayout

Floats = NDArray[np.float32]
Numbers = NDArray[np.int32]

_STRETCHES = (1.0, 0.8, 0.86, 0.91, 0.955, 1.045, 1.1, 1.2)
_PIECE = 1 << 20  # weights that a thread takes at a time


def searched(
    weight: Tensor,
    importance: Tensor | None,
    lut: Tensor,
    layout: BlockLayout,
    axis: int,
    scale: Tensor,
) -> Tensor | None:
    """Return the best factors that several stretches of the present ones lead to.

    Args:
        weight: in host memory.
        importance: of its shape, or None.
        lut: ``[B, K, 1]``, ascending.
        layout: of the tables; entries are scalars.
        axis: of the output channels.
        scale: the present factors.

    Returns:
        float32 of the scale's shape; None where a factor spans several tables.
    """
    rows = weight.shape[axis]
    count = scale.numel() // rows
    x = _rows(weight, axis)
    size = x.shape[1] // count
    places = _tables(layout, axis, count)
    if places is None:
        return None
    by_row, by_block = places
    tables = lut[..., 0].float().contiguous().numpy()
    low, per_unit = np.empty(len(tables), np.float32), np.empty(len(tables), np.float32)
    values = np.empty((len(tables), CELLS), np.float32)
    make_cells(tables, low, per_unit, values)
    weights = np.empty((rows, 0), np.float32) if importance is None else _rows(importance, axis)
    found = _rows(scale, axis).copy()
    stretches = np.asarray(_STRETCHES, np.float32)

    def search(part: slice) -> None:
        search_scales(
            x[part], weights[part], size, by_row[part], by_block, low, per_unit, values,
            stretches, found[part],
        )  # fmt: skip

    map_threads(search, parts_of(rows, max(1, _PIECE // x.shape[1])))
    order = (scale.shape[axis], *(n for at, n in enumerate(scale.shape) if at != axis))
    return torch.from_numpy(found).reshape(order).movedim(0, axis)


def _rows(tensor: Tensor, axis: int) -> Floats:
    """Return float32 with a channel in each row."""
    flat = tensor.detach().movedim(axis, 0).reshape(tensor.shape[axis], -1)
    found: Floats = flat.to("cpu", torch.float32).contiguous().numpy()
    return found


def _tables(layout: BlockLayout, axis: int, count: int) -> tuple[Numbers, Numbers] | None:
    """Return what channels, and each of ``count`` blocks of inputs, add to a table's number."""
    numbers = torch.arange(layout.n_blocks).reshape(layout.grid)
    first = numbers.select(axis, 0)
    inputs = [n for at, n in enumerate(layout.block) if at != axis]
    for at, extent in enumerate(inputs):
        first = first.repeat_interleave(extent, at)
    blocks = first.reshape(count, -1)
    if not bool((blocks == blocks[:, :1]).all()):
        return None
    step = math.prod(layout.grid[axis + 1 :])
    rows = torch.arange(layout.shape[axis]) // layout.block[axis] * step
    return rows.int().numpy(), blocks[:, 0].int().numpy()
