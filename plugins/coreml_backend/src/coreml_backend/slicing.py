"""Parts of a palettized weight, still palettized.

Attention packs three projections into one weight and splits it where queries and keys differ;
split at run time, the parts would be no constants to Core ML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from palette_core.tensors import PalettizedTensor

Range = tuple[int, int]


def take(palettized: PalettizedTensor, dim: int, start: int, stop: int) -> PalettizedTensor | None:
    """Return elements ``start`` to ``stop`` along ``dim``, or None.

    It is None where they cut a vector, a table or a block of a scale.

    Args:
        palettized: the whole weight.
        dim: axis of the weight.
        start: first element, not negative.
        stop: one past the last, at most the extent.
    """
    p, extent = palettized, palettized.shape[dim]
    vector = p.cluster_dim if dim == p.axis else 1
    if start % vector or stop % vector or start >= stop:
        return None
    block = extent // p.grid[dim]
    first, last = start // block, (stop - 1) // block
    whole_blocks = not (start % block or stop % block)
    if not whole_blocks and first != last:
        return None
    scale = p.scale
    if scale is not None and scale.shape[dim] > 1:
        span = extent // scale.shape[dim]
        if start % span or stop % span:
            return None
        scale = scale.narrow(dim, start // span, (stop - start) // span)

    def tables(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.narrow(dim, first, last - first + 1)

    lut = tables(p.lut)
    assert lut is not None
    return replace(
        p,
        indices=p.indices.narrow(dim, start // vector, (stop - start) // vector).contiguous(),
        lut=lut,
        lut_scale=tables(p.lut_scale),
        lut_zero_point=tables(p.lut_zero_point),
        scale=scale,
        mask=None if p.mask is None else p.mask.narrow(dim, start, stop - start).contiguous(),
    )


def ranges(kind: str, arguments: Sequence[Any], shape: Sequence[int]) -> tuple[int, list[Range]]:
    """Return axis and parts that a torch operation cuts a tensor into.

    Args:
        kind: ``chunk``, ``split``, ``split_with_sizes`` or ``slice``, as coremltools names them.
        arguments: all but the tensor itself.
        shape: of the tensor.

    Returns:
        The axis, and start and stop of each part; no parts where the operation is another one, or
        takes every other element.
    """
    if kind == "slice":
        given = list(arguments) + [0, None, None, 1][len(arguments) :]
        dim, start, stop, step = given
        dim %= len(shape)
        if step != 1:
            return dim, []
        low, high, _ = slice(start, stop).indices(shape[dim])
        return dim, [(low, high)]
    if kind not in ("chunk", "split", "split_with_sizes"):
        return 0, []
    dim = (arguments[1] if len(arguments) > 1 else 0) % len(shape)
    sizes = arguments[0]
    if kind == "chunk":
        sizes = -(-shape[dim] // arguments[0])
    if isinstance(sizes, int):
        sizes = [min(sizes, shape[dim] - at) for at in range(0, shape[dim], sizes)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return dim, [(end - size, end) for end, size in zip(ends, sizes, strict=True)]
