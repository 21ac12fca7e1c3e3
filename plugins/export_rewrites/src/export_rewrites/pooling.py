"""Pooling: what is counted, where maxima are, uneven windows, three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from export_rewrites._registry import rewrites

aten = torch.ops.aten


def _each(
    value: Sequence[int] | int | None, n: int, default: Sequence[int] | None = None
) -> list[int]:
    """Return one number for each spatial axis, of arguments that may be one or left out."""
    if value is None or (isinstance(value, Sequence) and not value):
        assert default is not None
        return list(default)
    if isinstance(value, int):
        return [value] * n
    return list(value) if len(value) == n else list(value) * n


def _count(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Return how many windows there are; one that starts in the padding behind does not count."""
    spare = size + 2 * padding - kernel
    count = (-(-spare // stride) if ceil_mode else spare // stride) + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count


def _covered(
    size: int, kernel: int, stride: int, padding: int, count: int, count_padding: bool
) -> list[int]:
    """Return how many elements each window averages over."""
    low, high = (-padding, size + padding) if count_padding else (0, size)
    starts = [i * stride - padding for i in range(count)]
    return [min(start + kernel, high) - max(start, low) for start in starts]


def _constant(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Return a vector without a tensor literal, which exported programs would have to hold.

    Pooled axes have few distinct counts, at their ends: equal runs are filled.
    """
    runs: list[list[float]] = []
    for number in numbers:
        if runs and runs[-1][0] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    parts = [aten.full.default([int(n)], number, dtype=like.dtype) for number, n in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _average(
    a: Tensor,
    n: int,
    pool: Callable[..., Tensor],
    kernel_size: Sequence[int] | int,
    stride: Sequence[int] | int | None,
    padding: Sequence[int] | int,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    kernel = _each(kernel_size, n)
    step, pad = _each(stride, n, kernel), _each(padding, n)
    sizes = a.shape[-n:]
    given = stride is not None and not (isinstance(stride, Sequence) and not stride)
    if not all(isinstance(size, int) for size in sizes):
        return NotImplemented
    counts = [
        _count(size, k, s, p, ceil_mode)
        for size, k, s, p in zip(sizes, kernel, step, pad, strict=True)
    ]
    spans = [
        _covered(size, k, s, p, count, count_include_pad)
        for size, k, s, p, count in zip(sizes, kernel, step, pad, counts, strict=True)
    ]
    even = all(set(span) == {k} for span, k in zip(spans, kernel, strict=True))
    if even and divisor_override is None and not any(pad):
        return NotImplemented if given and not ceil_mode else pool(a, kernel, step)
    sides: list[int] = []
    for size, k, s, p, count in reversed(list(zip(sizes, kernel, step, pad, counts, strict=True))):
        sides += [p, max(0, (count - 1) * s + k - size - p)]
    mean = pool(F.pad(a, sides) if any(sides) else a, kernel, step)
    if divisor_override is not None:
        return mean * (math.prod(kernel) / divisor_override)
    for axis, (span, k) in enumerate(zip(spans, kernel, strict=True)):
        if set(span) != {k}:
            shape = [1] * n
            shape[axis] = len(span)
            mean = mean * _constant([k / covered for covered in span], a).reshape(shape)
    return mean


@rewrites(
    aten.avg_pool2d.default,
    why="coreai-torch 0.4.3 counts padding all the same, and fails on ceil_mode and left-out "
    "strides",
)
def avg_pool2d(
    a: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """A mean over whole windows, times what it should have been divided by."""
    how = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _average(a, 2, aten.avg_pool2d.default, *how)


@rewrites(
    aten.avg_pool3d.default,
    why="coreai-torch 0.4.3 counts padding all the same, and fails on ceil_mode and left-out "
    "strides",
)
def avg_pool3d(
    a: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """A mean over whole windows, times what it should have been divided by."""
    how = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _average(a, 3, aten.avg_pool3d.default, *how)


# --- maxima ---------------------------------------------------------------------------------------


def _places(
    a: Tensor, kernel: list[int], step: list[int], pad: list[int], apart: list[int], ceil_mode: bool
) -> tuple[Tensor, list[int], list[int]]:
    """Return the places in the padded plane that windows read, ``[windows, kernel]``.

    Also the padding behind, and how many windows each axis has.
    """
    sizes = list(a.shape[-len(kernel) :])
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, apart, strict=True)]
    rows = list(zip(sizes, spans, step, pad, strict=True))
    counts = [_count(size, k, s, p, ceil_mode) for size, k, s, p in rows]
    behind = [
        max(0, (count - 1) * s + k - size - p)
        for (size, k, s, p), count in zip(rows, counts, strict=True)
    ]
    at = torch.zeros(1, 1, dtype=torch.int64)
    for axis, (k, s, d) in enumerate(zip(kernel, step, apart, strict=True)):
        extent = sizes[axis] + pad[axis] + behind[axis]
        here = torch.arange(counts[axis]).unsqueeze(1) * s + torch.arange(k) * d
        at = (at.unsqueeze(1).unsqueeze(3) * extent + here.unsqueeze(0).unsqueeze(2)).reshape(
            at.shape[0] * counts[axis], at.shape[1] * k
        )
    return at, behind, counts


def _maxima(
    a: Tensor,
    kernel: list[int],
    step: list[int],
    pad: list[int],
    apart: list[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    """Return maxima and their places in the plane, the first of equals, by reading all windows."""
    n = len(kernel)
    at, behind, counts = _places(a, kernel, step, pad, apart, ceil_mode)
    sides = [side for p, b in zip(reversed(pad), reversed(behind), strict=True) for side in (p, b)]
    low = torch.finfo(a.dtype).min if a.is_floating_point() else torch.iinfo(a.dtype).min
    padded = F.pad(a, sides, value=low) if any(sides) else a
    lead = list(a.shape[:-n])
    windows = padded.reshape([*lead, -1]).index_select(-1, at.reshape(-1))
    values, chosen = windows.reshape([*lead, *at.shape]).max(-1)
    flat = (torch.arange(at.shape[0]) * at.shape[1] + chosen).reshape(-1)
    place = at.reshape(-1).index_select(0, flat).reshape(chosen.shape)
    index, rest = torch.zeros_like(place), place
    for axis in range(n):
        below = math.prod(
            s + p + b for s, p, b in list(zip(a.shape[-n:], pad, behind, strict=True))[axis + 1 :]
        )
        here = torch.div(rest, below, rounding_mode="floor")
        index, rest = index * a.shape[axis - n] + here - pad[axis], rest - here * below
    return values.reshape([*lead, *counts]), index.reshape([*lead, *counts])


@rewrites(
    aten.max_pool2d_with_indices.default,
    why="coreai-torch 0.4.3 makes all indices 0, coremltools 9.0 counts them in the padded plane",
)
def max_pool2d_with_indices(
    a: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    """The same maxima, and indices out of windows; these go away where nobody looks at them."""
    kernel = _each(kernel_size, 2)
    step, pad, apart = _each(stride, 2, kernel), _each(padding, 2), _each(dilation, 2)
    if not all(isinstance(size, int) for size in a.shape[-2:]):
        return NotImplemented
    by_windows = _maxima(a, kernel, step, pad, apart, ceil_mode)
    if set(apart) != {1}:
        return by_windows
    if ceil_mode:
        _, behind, _ = _places(a, kernel, step, pad, apart, ceil_mode)
        sides = [pad[1], behind[1], pad[0], behind[0]]
        a = F.pad(a, sides, value=torch.finfo(a.dtype).min)
        return aten.max_pool2d_with_indices.default(a, kernel, step)[0], by_windows[1]
    return aten.max_pool2d_with_indices.default(a, kernel, step, pad)[0], by_windows[1]


@rewrites(aten.max_pool2d.default, why="coremltools 9.0 takes no dilation")
def max_pool2d(
    a: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    """Out of windows, where these have gaps."""
    if set(_each(dilation, 2)) == {1} and not ceil_mode:
        return NotImplemented
    how = (kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
    made: Tensor = max_pool2d_with_indices(a, *how)[0]
    return made


@rewrites(
    aten.max_pool3d_with_indices.default,
    why="coreai-torch 0.4.3 has no lowering for it, coremltools 9.0 gives no indices",
)
def max_pool3d_with_indices(
    a: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    """Out of windows."""
    kernel = _each(kernel_size, 3)
    step, pad, apart = _each(stride, 3, kernel), _each(padding, 3), _each(dilation, 3)
    if not all(isinstance(size, int) for size in a.shape[-3:]):
        return NotImplemented
    return _maxima(a, kernel, step, pad, apart, ceil_mode)


# --- adaptive -------------------------------------------------------------------------------------


def _bins(size: int, count: int) -> list[tuple[int, int]]:
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _pooled(a: Tensor, axis: int, count: int, join: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Join each of ``count`` bins of an axis, as torch lays them."""
    parts = [join(a.narrow(axis, s, e - s), axis) for s, e in _bins(a.shape[axis], count)]
    return parts[0] if count == 1 else torch.cat(parts, axis)


@rewrites(
    aten._adaptive_avg_pool3d.default,
    aten._adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
    why="coremltools 9.0 takes sizes that divide only, coreai-torch 0.4.3 none in three dimensions",
)
def adaptive_avg_pool(a: Tensor, output_size: Any) -> Any:
    """Means of bins, one axis after the other."""
    counts = list(output_size)
    n = len(counts)
    if not all(isinstance(size, int) for size in a.shape[-n:]):
        return NotImplemented
    for axis, count in zip(range(-n, 0), counts, strict=True):
        a = _pooled(a, axis, count, lambda part, at: part.mean(at, keepdim=True))
    return a


@rewrites(
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    why="coreai-torch 0.4.3 has no lowering for it, coremltools 9.0 takes sizes that divide only",
)
def adaptive_max_pool(a: Tensor, output_size: Any) -> Any:
    """Maxima of bins, one axis after the other; of indices, those of the bins laid out."""
    counts = list(output_size)
    n = len(counts)
    sizes = a.shape[-n:]
    if not all(isinstance(size, int) for size in sizes):
        return NotImplemented
    plane = torch.arange(math.prod(sizes)).reshape(list(sizes)).expand(a.shape)

    def larger(part: Tensor, places: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        values, at = part.max(axis, keepdim=True)
        return values, places.gather(axis, at)

    values = a
    for axis, count in zip(range(-1, -n - 1, -1), reversed(counts), strict=True):
        made = [
            larger(values.narrow(axis, s, e - s), plane.narrow(axis, s, e - s), axis)
            for s, e in _bins(values.shape[axis], count)
        ]
        values, plane = (torch.cat(parts, axis) for parts in zip(*made, strict=True))
    return values, plane
