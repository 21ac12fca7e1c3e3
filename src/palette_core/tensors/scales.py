"""Scales beside look-up tables: one factor per output channel, or per block of its inputs.

A scale has the rank of its weight, and each of its extents divides the weight's: every factor
stands for a regular block of neighbours. An extent of 1 spans the whole axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from palette_core.errors import IncompatibleShapeError
from palette_core.tensors.layout import Shape

_SMALL, _LARGE = 2.0**-13, 2.0**14  # float16 holds these, and what lies between, in full


def scale_shape(shape: Shape, axis: int, block_size: int | None) -> Shape:
    """Return the shape of the scale of a weight whose output channels lie on ``axis``.

    Args:
        shape: of the weight.
        axis: of the output channels, each of which has factors of its own.
        block_size: inputs of a channel that share a factor, of all its inputs flattened in the
            order of the other axes; None is all of them.

    Raises:
        IncompatibleShapeError: a factor for each element, or blocks of that size are no regular
            grid over the weight; naming the sizes that are.
    """
    inputs = [extent for at, extent in enumerate(shape) if at != axis]
    if not inputs:
        raise IncompatibleShapeError(
            f"enable_per_channel_scale on shape {shape} would keep one scale per element; "
            "turn it off for this tensor"
        )
    if block_size is None:
        return tuple(extent if at == axis else 1 for at, extent in enumerate(shape))
    sizes = _sizes(inputs)
    if block_size not in sizes:
        raise IncompatibleShapeError(
            f"scale_block_size={block_size} does not cut the {math.prod(inputs)} inputs of a "
            f"channel of shape {shape} evenly; these do: {', '.join(map(str, sorted(sizes)))}"
        )
    extents = sizes[block_size]
    return (*extents[:axis], shape[axis], *extents[axis:])


def _sizes(inputs: list[int]) -> dict[int, Shape]:
    """Return sizes of blocks of at least two inputs, and what extents a scale then has."""
    found = {}
    for at, extent in enumerate(inputs):
        below = math.prod(inputs[at + 1 :])
        for each in range(1, extent + 1):
            if extent % each == 0 and each * below > 1:
                found[each * below] = (*inputs[:at], extent // each, *(1 for _ in inputs[at + 1 :]))
    return found


def apply_scale(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the weight with each element multiplied by its factor."""
    if _broadcasts(scale, weight.shape):
        return weight * scale
    cut, factors = _matched(weight.shape, scale)
    return (weight.reshape(cut) * factors).reshape(weight.shape)


def divide_by_scale(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the weight with each element divided by its factor; by 1 where that is zero."""
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    if _broadcasts(scale, weight.shape):
        return weight / scale
    cut, factors = _matched(weight.shape, scale)
    return (weight.reshape(cut) / factors).reshape(weight.shape)


def spread_scale(scale: Tensor, shape: Shape) -> Tensor:
    """Return the factor of every element of a weight of ``shape``; a view where strides allow."""
    if _broadcasts(scale, shape):
        return scale.expand(shape)
    cut, factors = _matched(shape, scale)
    return factors.expand(cut).reshape(shape)


def by_block(weight: Tensor, extents: Shape) -> tuple[Tensor, list[int]]:
    """Return a weight cut so that the blocks of a scale with these extents can be summed over.

    Returns:
        the weight with every axis cut in two, blocks and elements of a block, and the axes of
        elements.
    """
    cut = [n for extent, blocks in zip(weight.shape, extents, strict=True)
           for n in (blocks, extent // blocks)]  # fmt: skip
    return weight.reshape(cut), list(range(1, len(cut), 2))


def range_scale(weight: Tensor, extents: Shape) -> Tensor:
    """Return the largest magnitude of every block, of shape ``extents``."""
    cut, inside = by_block(weight, extents)
    low, high = cut.amin(inside), cut.amax(inside)
    return torch.maximum(high, -low).reshape(extents)


def fits_shape(extents: Shape, shape: Shape) -> bool:
    """Return whether a scale of shape ``extents`` can belong to a weight of ``shape``."""
    return len(extents) == len(shape) and all(
        got > 0 and size % got == 0 for got, size in zip(extents, shape, strict=True)
    )


def stored_dtype(dtype: torch.dtype, scale: Tensor) -> torch.dtype:
    """Return the dtype that block scales of a weight of ``dtype`` are stored in.

    It is float16 for float32 and float64 weights, unless that would lose digits of a factor
    that is not zero.
    """
    if dtype.itemsize <= 2:
        return dtype
    if scale.numel() == 0:
        return torch.float16
    low, high = (float(end) for end in torch.aminmax(scale))
    if low == 0.0:
        used = scale[scale != 0]
        low = float(used.min()) if used.numel() else _SMALL
    return torch.float16 if low >= _SMALL and high <= _LARGE else dtype


def _broadcasts(scale: Tensor, shape: Shape) -> bool:
    return all(got in (1, size) for got, size in zip(scale.shape, shape, strict=True))


def _matched(shape: Shape, scale: Tensor) -> tuple[list[int], Tensor]:
    """Return a shape with axes cut in two where the scale has blocks, and the scale to match."""
    cut: list[int] = []
    factors: list[int] = []
    for extent, blocks in zip(shape, scale.shape, strict=True):
        if blocks in (1, extent):
            cut.append(extent)
            factors.append(blocks)
        else:
            cut += [blocks, extent // blocks]
            factors += [blocks, 1]
    return cut, scale.reshape(factors)
