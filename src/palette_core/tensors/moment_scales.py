"""Scales fitted to the outputs of a layer: least squares under the second moments of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from palette_core.tensors.layout import Shape
from palette_core.tensors.moments import InputMoments
from palette_core.tensors.scales import spread_scale

_RIDGE = 1e-6  # of the mean of the diagonal, towards the present factors


def output_error(moments: InputMoments, gap: Tensor, damping: float) -> float:
    """Return Σ over output channels of Δw (H + damping · ridge) Δwᵀ, channels by their share.

    Args:
        moments: of the layer's inputs.
        gap: ΔW, of the weight's shape.
        damping: what to add to the diagonal, in ridges.
    """
    rows = moments.to_matrices(gap.float()).cpu()
    squares = (rows * _times(moments, rows, damping)).double().sum(-1)
    if moments.share is not None:
        squares = squares * moments.share.reshape(squares.shape).double()
    return float(squares.sum())


def output_scales(
    moments: InputMoments, weight: Tensor, unit: Tensor, scale: Tensor, damping: float
) -> Tensor | None:
    """Return the factors by which entries come nearest to the weight's outputs.

    For each output channel the factors s of its blocks solve A s = b, with A_pq = d_p H d_qᵀ and
    b_p = d_p H wᵀ, d_p the entries of block p.

    Args:
        moments: of the layer's inputs, dense or diagonal.
        weight: what is to come near to.
        unit: entries in the place of the weight, not yet scaled.
        scale: the present factors; those that cannot be bettered stay.
        damping: what to add to the diagonal of H, in ridges.

    Returns:
        float32 on the scale's device; None where a factor is not of one output channel alone.
    """
    d = moments.to_matrices(unit.float()).cpu()
    blocks = _blocks(moments, scale, d.shape)
    if blocks is None:
        return None
    at, size = blocks
    groups, rows, columns = d.shape
    count = columns // size
    w = moments.to_matrices(weight.float()).cpu()
    right = (_times(moments, w, damping) * d).reshape(groups, rows, count, size).double().sum(-1)
    old = scale.detach().cpu().reshape(-1)[at].double()
    if moments.is_diagonal:
        square = (_times(moments, d, damping) * d).reshape(groups, rows, count, size)
        square = square.double().sum(-1)
        found = right / torch.where(square > 0, square, torch.ones_like(square))
    else:
        left = torch.empty(groups, rows, count, count, dtype=torch.float64)
        for p in range(count):
            part = torch.zeros_like(d)
            own = slice(p * size, (p + 1) * size)
            part[..., own] = d[..., own]
            line = _times(moments, part, damping) * d
            left[:, :, p] = line.reshape(groups, rows, count, size).double().sum(-1)
        diagonal = left.diagonal(dim1=-2, dim2=-1)
        ridge = _RIDGE * diagonal.mean(-1, keepdim=True)
        diagonal.add_(torch.where(ridge > 0, ridge, torch.ones_like(ridge)))
        off = right - (left @ old[..., None])[..., 0] + ridge * old
        found = old + torch.linalg.solve(left, off[..., None])[..., 0]
    found = torch.where((found > 0) & (old != 0) & found.isfinite(), found, old)
    flat = torch.empty(scale.numel(), dtype=torch.float64)
    flat[at.reshape(-1)] = found.reshape(-1)
    return flat.float().reshape(scale.shape).to(scale.device)


def _times(moments: InputMoments, rows: Tensor, damping: float) -> Tensor:
    """Return rows ``[G, R, C]`` times H, damped."""
    ridge = (damping * moments.ridges()).float().cpu()[:, None, :]
    h = moments.hessian.float().cpu()
    if moments.is_diagonal:
        return rows * (h[:, None, :] + ridge)
    return rows @ h + rows * ridge


def _blocks(moments: InputMoments, scale: Tensor, shape: torch.Size) -> tuple[Tensor, int] | None:
    """Return ``[G, R, blocks]``, the place of each factor, and how many inputs it spans."""
    groups, rows, columns = shape
    numbers = torch.arange(scale.numel(), dtype=torch.int32).reshape(scale.shape)
    full: Shape = tuple(moments.layout.shape)
    wide = moments.to_matrices(spread_scale(numbers, full))
    count = scale.numel() // (groups * rows)
    if count < 1 or count * groups * rows != scale.numel() or columns % count:
        return None
    cut = wide.reshape(groups, rows, count, -1)
    if not bool((cut == cut[..., :1]).all()):
        return None
    return cut[..., 0].long(), columns // count
