"""Soft assignments of points to entries, and their gradients, without keeping the assignments.

With points x, entries c and a temperature τ, the attention of a point to an entry is
a_j = softmax_j(−‖x − c_j‖² / τ). Two things are made of it: the attended points m = Σ_j a_j c_j,
and the attended means c'_j = Σ_x a_j x / Σ_x a_j, one soft k-means step. Derivatives, by
∂a_j/∂x = (2/τ) a_j (c_j − m) and ∂a_l/∂c_j = (2/τ) a_l (δ_lj − a_j) (x − c_j):

* of Σ g·m: to x, (2/τ) (Σ_j a_j (g·c_j) c_j − (g·m) m); to c_j, Σ_x a_j (g + (2/τ) (g·(c_j − m))
  (x − c_j));
* of Σ_j g_j·c'_j, with z_j = Σ_x a_j and h_j = g_j·(x − c'_j) / z_j: to x, Σ_j a_j g_j / z_j +
  (2/τ) (Σ_j a_j h_j c_j − m Σ_j a_j h_j); to c_j, (2/τ) Σ_x a_j (h_j − Σ_l a_l h_l) (x − c_j).

Attention is computed piece by piece and again in the backward pass. Scalars are first gathered
into few distinct values, as in eDKM (arXiv 2309.00964), section 3.2: every sum above then runs
over those, weighted by how often they occur.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from palette_core._common.autocast import autocast_off
from palette_core.tensors import pieces

_DISTINCT = 1 << 16


@dataclass(frozen=True)
class Distinct:
    """Points as the values that occur among them.

    Attributes:
        values: ``[B, U, D]`` float32 or float64, U at most 65,536 where D is 1.
        counts: ``[B, U, 1]``: how often each occurs, or None for once each.
        index: ``[B, N]`` int16, less 32,768: which value each point has, or None where values are
            the points.
    """

    values: Tensor
    counts: Tensor | None = None
    index: Tensor | None = None

    def spread(self, table: Tensor) -> Tensor:
        """Return rows of a table ``[B, U, D]`` for every point, ``[B, N, D]``."""
        if self.index is None:
            return table
        out = table.new_empty((*self.index.shape, 1))
        for block, piece in pieces(*self.index.shape):
            at = self.index[block, piece].long() + _DISTINCT // 2
            out[block, piece, 0] = table[block, :, 0].gather(1, at)
        return out

    def gathered(self, values: Tensor) -> Tensor:
        """Return the sums of ``[B, N, D]`` over the points of each value, ``[B, U, D]``."""
        values = values.to(self.values.dtype)
        if self.index is None:
            return values
        sums = torch.zeros_like(self.values, dtype=torch.float64)
        for block, piece in pieces(*self.index.shape):
            at = self.index[block, piece].long() + _DISTINCT // 2
            sums[block, :, 0].scatter_add_(1, at, values[block, piece, 0].double())
        return sums.to(self.values.dtype)


def distinct(points: Tensor) -> Distinct:
    """Gather points ``[B, N, D]`` into distinct values.

    Blocks of more than 65,536 scalars are rounded to as many equal steps from their lowest to
    their highest; others, and vectors, are taken as they are.
    """
    x = points.detach()
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    blocks, count, dim = x.shape
    if dim > 1 or count <= _DISTINCT:
        return Distinct(x)
    low, high = (end[:, :, None] for end in torch.aminmax(x[..., 0], dim=1, keepdim=True))
    step = (high - low) / (_DISTINCT - 1)
    step = torch.where(step > 0, step, torch.ones_like(step))
    index = torch.empty((blocks, count), dtype=torch.int16, device=x.device)
    counts = x.new_zeros((blocks, _DISTINCT, 1))
    for block, piece in pieces(blocks, count):
        at = ((x[block, piece, 0] - low[block, :, 0]) / step[block, :, 0]).round_().long()
        at = at.clamp_(0, _DISTINCT - 1)
        counts[block, :, 0].scatter_add_(1, at, torch.ones_like(x[block, piece, 0]))
        index[block, piece] = (at - _DISTINCT // 2).to(torch.int16)
    values = low + step * torch.arange(_DISTINCT, dtype=x.dtype, device=x.device)[:, None]
    return Distinct(values, counts, index)


def attended_points(points: Tensor, lut: Tensor, tau: Tensor, among: Distinct) -> Tensor:
    """Return Σ_j a_j c_j for every point.

    Args:
        points: ``[B, N, D]``; read for their gradient only, ``among`` has their values.
        lut: ``[B, K, D]`` float32 or float64.
        tau: ``[B, 1, 1]``, positive.
        among: `distinct` of the points.
    """
    return cast("Tensor", _Points.apply(points, lut, tau, among))  # type: ignore[no-untyped-call]


def attended_means(points: Tensor, lut: Tensor, tau: Tensor, among: Distinct) -> Tensor:
    """Return Σ a_j x / Σ a_j for every entry, ``[B, K, D]``; arguments as `attended_points`.

    An entry that no point attends to stays where it is.
    """
    return cast("Tensor", _Means.apply(points, lut, tau, among))  # type: ignore[no-untyped-call]


class _Points(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, lut: Tensor, tau: Tensor, among: Distinct) -> Tensor:
        _keep(ctx, lut, tau, among, points.dtype)
        table = torch.empty_like(among.values)
        for block, piece, _, a in _attention(among.values, lut, tau):
            table[block, piece] = _mixed(a, lut[block])
        return among.spread(table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        with autocast_off(grads[0].device.type):  # a caller may have left it on
            return _points_backward(ctx, grads[0])


def _points_backward(ctx: Any, grad: Tensor) -> Any:
    lut, tau, among, _ = _kept(ctx)
    gathered = among.gathered(grad)
    to_lut = torch.zeros_like(lut, dtype=torch.float64)
    # For scalars, the slope by which every point's own gradient is multiplied.
    table = torch.empty_like(among.values)
    for block, piece, x, a in _attention(among.values, lut, tau):
        c, g = lut[block], gathered[block, piece]
        m, pull = _mixed(a, c), 2 / tau[block]
        gap = _dots(c, g) - (g * m).sum(-1)[:, None]  # g·(c_j − m)
        to_lut[block] += _weighted_gaps(a * (pull * gap), x, c) + torch.bmm(a, g)
        if among.index is None:
            table[block, piece] = pull * _mixed(a * gap, c)
        else:
            table[block, piece] = pull * (a * (c - m.mT).square_()).sum(1)[..., None]
    to_points = table if among.index is None else among.spread(table) * grad
    return to_points.to(ctx.dtype), to_lut.to(lut.dtype), None, None


class _Means(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, lut: Tensor, tau: Tensor, among: Distinct) -> Tensor:
        sums = torch.zeros_like(lut, dtype=torch.float64)
        mass = torch.zeros_like(sums[..., :1])
        for block, piece, x, a in _attention(among.values, lut, tau):
            shares = a if among.counts is None else a * among.counts[block, piece].mT
            sums[block] += torch.bmm(shares, x)
            mass[block] += shares.sum(dim=2, dtype=torch.float64)[..., None]
        used = mass > _LEAST_MASS
        mass = torch.where(used, mass, 1.0)
        means = torch.where(used, sums / mass, lut.double()).to(lut.dtype)
        # Where no point attends, nothing may flow back.
        inverse = torch.where(used, 1 / mass, 0.0).to(lut.dtype)
        _keep(ctx, lut, tau, among, points.dtype, means, inverse)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        with autocast_off(grads[0].device.type):
            return _means_backward(ctx, grads[0])


def _means_backward(ctx: Any, grad: Tensor) -> Any:
    lut, tau, among, (means, inverse) = _kept(ctx)
    g = grad * inverse  # g_j / z_j
    to_lut = torch.where(inverse > 0, 0.0, grad).double()
    table = torch.empty_like(among.values)
    at_means = (g * means).sum(-1, keepdim=True)
    for block, piece, x, a in _attention(among.values, lut, tau):
        c, pull = lut[block], 2 / tau[block]
        h = _dots(g[block], x) - at_means[block]
        weighted = a * h
        mean_h = weighted.sum(dim=1, keepdim=True)
        turned = _mixed(weighted, c) - _mixed(a, c) * mean_h.mT
        table[block, piece] = _mixed(a, g[block]) + pull * turned
        share = pull * (weighted - a * mean_h)
        if among.counts is not None:
            share = share * among.counts[block, piece].mT
        to_lut[block] += _weighted_gaps(share, x, c)
    return among.spread(table).to(ctx.dtype), to_lut.to(lut.dtype), None, None


_LEAST_MASS = 1e-12  # of one point


def _keep(
    ctx: Any, lut: Tensor, tau: Tensor, among: Distinct, dtype: torch.dtype, *more: Tensor
) -> None:
    ctx.save_for_backward(lut, tau, among.values, among.counts, among.index, *more)
    ctx.dtype = dtype


def _kept(ctx: Any) -> tuple[Tensor, Tensor, Distinct, list[Tensor]]:
    # Read once: under gradient checkpointing, tensors can be unpacked one time only.
    lut, tau, values, counts, index, *more = ctx.saved_tensors
    return lut, tau, Distinct(values, counts, index), more


def _attention(
    values: Tensor, lut: Tensor, tau: Tensor
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yield blocks and piece, its values ``[b, n, D]``, and their attention ``[b, K, n]``.

    Entries before points: sums over few entries are slow where those are the last axis.
    """
    blocks, count, dim = values.shape
    for block, piece in pieces(blocks, count, lut.shape[1]):
        x, c = values[block, piece], lut[block]
        distance = (x[:, None, :, 0] - c[:, :, None, 0]).square_()
        for d in range(1, dim):
            distance += (x[:, None, :, d] - c[:, :, None, d]).square_()
        yield block, piece, x, torch.softmax(distance.div_(-tau[block]), dim=1)


def _mixed(a: Tensor, entries: Tensor) -> Tensor:
    """Return Σ_j a_j e_j: ``[b, K, n]`` and ``[b, K, D]`` to ``[b, n, D]``."""
    columns = entries.unbind(-1)
    return torch.stack([(a * column[..., None]).sum(dim=1) for column in columns], dim=-1)


def _dots(entries: Tensor, x: Tensor) -> Tensor:
    """Return e_j·x: ``[b, K, D]`` and ``[b, n, D]`` to ``[b, K, n]``."""
    return torch.bmm(entries, x.mT) if x.shape[-1] > 1 else entries * x.mT


def _weighted_gaps(weights: Tensor, x: Tensor, c: Tensor) -> Tensor:
    """Return Σ_x w_j (x − c_j): ``[b, K, n]`` and ``[b, n, D]`` to ``[b, K, D]``."""
    return torch.bmm(weights, x) - weights.sum(dim=2)[..., None] * c
