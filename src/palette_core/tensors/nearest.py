"""Nearest entries: the assignment of points to look-up tables, and its gradients."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from palette_core.tensors.codebook import gather_entries

_CHUNK = 1 << 18  # distances, or elements of wide temporaries, held at once


def assign(points: Tensor, entries: Tensor) -> Tensor:
    """Return which entry is nearest to each point, the lowest among equals.

    Exact for entries of up to 32 bits with one value; sums of squared differences in float32
    (float64 where either is) for longer ones. The same on any number of threads.

    Args:
        points: ``[B, N, D]`` floating.
        entries: ``[B, K, D]`` floating.

    Returns:
        ``[B, N]`` uint8.
    """
    wide = torch.promote_types(torch.promote_types(points.dtype, entries.dtype), torch.float32)
    if points.shape[-1] == 1:
        return _nearest_scalars(points[..., 0], entries[..., 0], wide)
    blocks, count, _ = points.shape
    n_entries = entries.shape[1]
    codes = torch.empty((blocks, count), dtype=torch.uint8, device=points.device)
    for block, piece in pieces(blocks, count, n_entries):
        distance = squared_distances(points[block, piece].to(wide), entries[block].to(wide))
        codes[block, piece] = distance.argmin(-1).to(torch.uint8)
    return codes


def _nearest_scalars(points: Tensor, entries: Tensor, wide: torch.dtype) -> Tensor:
    """Return codes ``[B, N]`` of points ``[B, N]`` by the middles between sorted entries."""
    bounds, order = bounds_of(entries, wide)
    codes = torch.empty(points.shape, dtype=torch.uint8, device=points.device)
    for block, piece in pieces(*points.shape):
        x = points[block, piece].to(wide).contiguous()
        place = torch.searchsorted(bounds[block], x)
        codes[block, piece] = order[block].gather(1, place)
    return codes


def bounds_of(entries: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return up to where each entry is the nearest one to values of a dtype.

    Args:
        entries: ``[B, K]`` floating.
        wide: float32 or float64.

    Returns:
        ``[B, K - 1]`` in that dtype, ascending, and ``[B, K]`` uint8: the entry of a value is the
        one at the number of bounds below it.
    """
    ordered, order = entries.double().sort(dim=1, stable=True)
    middle = (ordered[:, 1:] + ordered[:, :-1]) / 2
    bounds = middle.to(wide)
    # Rounded down: then the comparison of a point with a bound is the exact one.
    down = torch.nextafter(bounds, torch.full_like(bounds, -math.inf))
    bounds = torch.where(bounds.double() > middle, down, bounds).contiguous()
    # Among equal entries the first: it is the last that begins at or below a bound.
    first = (ordered[:, :, None] == ordered[:, None, :]).to(torch.uint8).argmax(dim=2)
    return bounds, order.gather(1, first).to(torch.uint8)


def squared_distances(points: Tensor, entries: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return ``[B, N, K]``, Σ over D of w (point − entry)²; weights ``[B, N, D]``, or all 1."""
    total: Tensor | None = None
    for d in range(points.shape[-1]):
        part = (points[:, :, None, d] - entries[:, None, :, d]).square_()
        if weights is not None:
            part *= weights[..., d, None]
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def pieces(blocks: int, count: int, width: int = 1) -> list[tuple[slice, slice]]:
    """Cut ``[blocks, count, width]`` into slices of about 260,000 elements."""
    step = max(1, min(count, _CHUNK // width))
    together = max(1, _CHUNK // (step * width))
    return [
        (slice(b, b + together), slice(n, n + step))
        for b in range(0, blocks, together)
        for n in range(0, count, step)
    ]


def sums_by_code(values: Tensor, codes: Tensor, n_entries: int) -> Tensor:
    """Return ``[B, K, D]`` float64: the sums of values ``[B, N, D]`` by their codes ``[B, N]``."""
    blocks, count, dim = values.shape
    out = torch.zeros((blocks, n_entries, dim), dtype=torch.float64, device=values.device)
    for block, piece in pieces(blocks, count):
        part = codes[block, piece].long()
        part = part + torch.arange(part.shape[0], device=part.device)[:, None] * n_entries
        for d in range(dim):
            weights = values[block, piece, d].double().reshape(-1)
            found = torch.bincount(part.reshape(-1), weights, minlength=part.shape[0] * n_entries)
            out[block, :, d] += found.view(-1, n_entries)
    return out


def straight_through(value: Tensor, stands_for: Tensor) -> Tensor:
    """Return ``stands_for``, bit for bit, with gradients that reach ``value`` unchanged."""
    return cast("Tensor", _StraightThrough.apply(value, stands_for))  # type: ignore[no-untyped-call]


def look_up(points: Tensor, entries: Tensor, codes: Tensor) -> Tensor:
    """Return the entries that codes pick, ``[B, N, D]``.

    The gradient reaches each entry as the sum over the points that it stands for, and the points
    straight through. Only the codes, one byte each, are kept for the backward pass.

    Args:
        points: ``[B, N, D]``.
        entries: ``[B, K, D]``.
        codes: ``[B, N]`` uint8.
    """
    return cast("Tensor", _LookUp.apply(points, entries, codes))  # type: ignore[no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, stands_for: Tensor) -> Tensor:
        del value
        return stands_for.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, entries: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.n_entries, ctx.dtypes = entries.shape[1], (points.dtype, entries.dtype)
        return gather_entries(entries.detach(), codes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        (codes,) = ctx.saved_tensors
        points = entries = None
        if ctx.needs_input_grad[0]:
            points = grad.to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            entries = sums_by_code(grad, codes, ctx.n_entries).to(ctx.dtypes[1])
        return points, entries, None
