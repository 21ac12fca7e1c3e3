"""Resizing and sampling of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from export_rewrites._registry import rewrites

aten = torch.ops.aten


def _sizes(
    a: Tensor, n: int, size: Sequence[int] | None, scales: Sequence[float] | None
) -> list[int]:
    if size is not None:
        return list(size)
    assert scales is not None
    return [int(extent * scale) for extent, scale in zip(a.shape[-n:], scales, strict=True)]


def _nearest(a: Tensor, n: int, size: Any, scales: Any, shift: float) -> Tensor:
    counts = _sizes(a, n, size, scales)
    for i, count in enumerate(counts):
        axis = i - n
        extent = a.shape[axis]
        if not isinstance(extent, int):
            return NotImplemented
        step = 1 / scales[i] if scales is not None and scales[i] else extent / count
        if shift == 0 and count % extent == 0 and step * count == extent:
            a = a.repeat_interleave(count // extent, axis) if count != extent else a
            continue
        at = torch.floor((torch.arange(count, dtype=torch.float32) + shift) * step)
        a = a.index_select(axis % a.dim(), at.to(torch.int64).clamp(max=extent - 1))
    return a


@rewrites(
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
    why="coreai-torch 0.4.3 picks other pixels where sizes do not divide",
)
def upsample_nearest(a: Tensor, output_size: Any, scale_factors: Any) -> Any:
    """Pixels picked, one axis after the other."""
    n = a.dim() - 2
    counts = _sizes(a, n, output_size, scale_factors)
    if n == 2 and all(c % s == 0 for c, s in zip(counts, a.shape[-2:], strict=True)):
        return NotImplemented
    return _nearest(a, n, output_size, scale_factors, 0.0)


@rewrites(
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec,
    why="coremltools 9.0 has no conversion for it",
)
def upsample_nearest_exact(a: Tensor, output_size: Any, scale_factors: Any) -> Any:
    """Pixels picked, one axis after the other."""
    return _nearest(a, a.dim() - 2, output_size, scale_factors, 0.5)


@rewrites(
    aten.upsample_bilinear2d.vec,
    why="coremltools 9.0 takes no sizes below the image's, and no factors that are not whole",
)
def upsample_bilinear(a: Tensor, output_size: Any, align_corners: bool, scale_factors: Any) -> Any:
    """Two pixels of each axis, weighed, one axis after the other."""
    counts = _sizes(a, 2, output_size, scale_factors)
    sizes = a.shape[-2:]
    if not all(isinstance(size, int) for size in sizes):
        return NotImplemented
    if output_size is None and all(c % s == 0 for c, s in zip(counts, sizes, strict=True)):
        return NotImplemented
    for i, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        axis = a.dim() - 2 + i
        at = torch.arange(count, dtype=torch.float32)
        if align_corners:
            at = at * ((size - 1) / max(1, count - 1))
        else:
            step = 1 / scale_factors[i] if scale_factors is not None else size / count
            at = ((at + 0.5) * step - 0.5).clamp(min=0)
        low = torch.floor(at)
        part = (at - low).reshape([-1] + [1] * (1 - i)).to(a.dtype)
        below = low.to(torch.int64).clamp(max=size - 1)
        above = (below + 1).clamp(max=size - 1)
        a = a.index_select(axis, below) * (1 - part) + a.index_select(axis, above) * part
    return a


def _weights(extent: int, count: int, scale: float) -> Tensor:
    """Return ``[count, extent]``: triangles as wide as the step, of the pixels there are."""
    wide = max(scale, 1.0)
    centre = (torch.arange(count, dtype=torch.float32) + 0.5) * scale
    pixel = torch.arange(extent, dtype=torch.float32) + 0.5
    heights = (1 - torch.abs(pixel - centre.unsqueeze(1)) / wide).clamp(min=0)
    return heights / heights.sum(-1, keepdim=True)


@rewrites(
    aten._upsample_bilinear2d_aa.default,
    aten._upsample_bilinear2d_aa.vec,
    why="coreai-torch 0.4.3 and OpenVINO 2026.4 have no antialiased resizing",
)
def upsample_antialiased(a: Tensor, output_size: Any, align_corners: bool, *scales: Any) -> Any:
    """Two products, with the weights of rows and of columns."""
    if align_corners or not all(isinstance(size, int) for size in a.shape[-2:]):
        return NotImplemented
    given = list(scales[0]) if scales and isinstance(scales[0], Sequence) else list(scales)
    counts = _sizes(a, 2, output_size, given or None)
    steps = [
        1 / given[i] if i < len(given) and given[i] else a.shape[i - 2] / counts[i] for i in (0, 1)
    ]
    down, across = (_weights(a.shape[i - 2], counts[i], steps[i]).to(a.dtype) for i in (0, 1))
    return down @ a @ across.t()


@rewrites(aten.grid_sampler_2d.default, why="coreai-torch 0.4.3 has no lowering for it")
def grid_sampler_2d(
    a: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Any:
    """Four pixels around each point, weighed; or the nearest one."""
    if interpolation_mode == 2 or padding_mode == 2:
        return NotImplemented
    n, channels, height, width = a.shape
    points = grid.shape[1] * grid.shape[2]
    flat = a.reshape(n, channels, height * width)

    def place(part: Tensor, size: int) -> Tensor:
        at = (part + 1) * ((size - 1) / 2) if align_corners else ((part + 1) * size - 1) / 2
        return at.clamp(0, size - 1) if padding_mode == 1 else at

    x, y = place(grid[..., 0], width), place(grid[..., 1], height)

    def pixel(row: Tensor, column: Tensor) -> Tensor:
        inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)
        at = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        index = at.to(torch.int64).reshape(n, 1, points).expand(n, channels, points)
        picked = flat.gather(-1, index).reshape(n, channels, *grid.shape[1:3])
        return torch.where(inside.unsqueeze(1), picked, torch.zeros_like(picked))

    if interpolation_mode == 1:
        return pixel(torch.round(y), torch.round(x))
    top, left = torch.floor(y), torch.floor(x)
    down, right = (y - top).unsqueeze(1), (x - left).unsqueeze(1)
    upper = pixel(top, left) * (1 - right) + pixel(top, left + 1) * right
    lower = pixel(top + 1, left) * (1 - right) + pixel(top + 1, left + 1) * right
    return upper * (1 - down) + lower * down
