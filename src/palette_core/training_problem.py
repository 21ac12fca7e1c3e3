"""A palettized weight in the middle of training, as a training strategy sees it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from palette_core.layout import BlockLayout
from palette_core.palettized import Codebook, PalettizedTensor, QuantizedLut, gather_entries

_CHUNK = 1 << 18  # distances, or elements of wide temporaries, held at once


@dataclass(frozen=True)
class TrainingProblem:
    """Everything a training strategy may look at. Nothing in it may be written to.

    B blocks, each with a look-up table of its own, hold N points of D values; K entries per LUT.
    Points and entries are in units of the channel scale where the spec has one.

    Attributes:
        weight: the dense weight; gradients that reach it train what the optimizer holds, but for
            zeros that are to stay.
        palettized: the palette as last assigned. Its parts carry no gradient, and its LUT may be
            older than ``lut``.
        lut: ``[B, K, D]`` in the weight's dtype: the tables, not yet quantized. They carry
            gradients to a parameter of the model where the entry declares ``trains_lut``.
        step: training steps done since the weight is palettized.
        decode: makes ``palettized`` dense, once for as long as nothing changes; the result is
            not to be written to.
        quantize: the spec's LUT quantizer, or None.
        zero_entries: ``[B, K]`` bool: entries that stay exactly zero; None without
            ``preserve_zero``.
    """

    weight: Tensor
    palettized: PalettizedTensor
    lut: Tensor
    step: int
    decode: Callable[[], Tensor]
    quantize: Callable[[Tensor], QuantizedLut] | None = None
    zero_entries: Tensor | None = None

    def points(self) -> Tensor:
        """Return the weight as points ``[B, N, D]``, differentiable."""
        weight, scale = self.weight, self.palettized.scale
        if scale is not None:
            weight = weight / torch.where(scale == 0, torch.ones_like(scale), scale)
        return self.palettized.layout.split(weight)

    def merge(self, points: Tensor) -> Tensor:
        """Return the weight that points ``[B, N, D]`` stand for, as decoding would."""
        weight = self.palettized.layout.merge(points.to(self.weight.dtype))
        return weight if self.palettized.scale is None else weight * self.palettized.scale

    def codes(self) -> Tensor:
        """Return the present assignment, ``[B, N]`` uint8."""
        return self.palettized.codebook().codes

    def as_stored(self, lut: Tensor) -> Tensor:
        """Return tables ``[B, K, D]`` as they would decode; gradients go straight through.

        Quantized where the spec asks for it, cast to the weight's dtype, and with zeros where
        ``zero_entries`` demands them (no gradient goes there).
        """
        if self.zero_entries is not None:
            lut = lut.masked_fill(self.zero_entries[..., None], 0.0)
        if self.quantize is None:
            return lut.to(self.weight.dtype)
        stored = self.store(lut.detach())
        entries = stored.lut.to(self.weight.dtype)
        return straight_through(lut.to(self.weight.dtype), entries)

    def store(self, lut: Tensor) -> Codebook:
        """Return tables ``[B, K, D]`` in the form in which they are kept; without codes."""
        none = torch.empty((lut.shape[0], 0), dtype=torch.uint8, device=lut.device)
        lut = lut.to(self.weight.dtype)
        if self.zero_entries is not None:
            lut = lut.masked_fill(self.zero_entries[..., None], 0.0)
        if self.quantize is None:
            return Codebook(lut, none)
        made = self.quantize(lut)
        if self.zero_entries is not None:
            made = with_zeros(made, self.zero_entries)
        return Codebook(made.dequantize(), none, made)

    def nearest(self, points: Tensor, entries: Tensor) -> Tensor:
        """Return `nearest_codes`; what is exactly zero stays so where the spec demands it."""
        codes = nearest_codes(points.detach(), entries.detach())
        return codes if self.zero_entries is None else self.zeros_kept(points, codes)

    def zeros_kept(self, points: Tensor, codes: Tensor) -> Tensor:
        """Return codes ``[B, N]`` in which points that are zero have the entry that is zero."""
        if self.zero_entries is None:
            return codes
        entry = self.zero_entries.to(torch.uint8).argmax(dim=1, keepdim=True).to(torch.uint8)
        zeros = (points.detach() == 0).all(-1) & self.zero_entries.any(dim=1, keepdim=True)
        return torch.where(zeros, entry, codes)

    def zeros_kept_dense(self, made: Tensor) -> Tensor:
        """Return a weight in which points that are zero in ``weight`` are zero."""
        if self.zero_entries is None:
            return made
        return made.masked_fill(zero_mask(self.weight, self.palettized.layout), 0.0)


def zero_mask(weight: Tensor, layout: BlockLayout) -> Tensor:
    """Return where a weight is zero, in whole vectors: bool, of its shape."""
    if layout.cluster_dim == 1:
        return weight.detach() == 0
    zeros = (layout.split(weight.detach()) == 0).all(-1, keepdim=True)
    return layout.merge(zeros.expand(-1, -1, layout.cluster_dim))


def with_zeros(lut: QuantizedLut, zero_entries: Tensor) -> QuantizedLut:
    """Return quantized tables whose ``zero_entries`` ``[B, K]`` decode to exactly zero."""
    # By bytes: not every device fills 8-bit floats. All their zeros are zero bytes.
    values = lut.values.view(torch.uint8)
    zero = torch.zeros_like(values[:, :1, :1])
    if lut.zero_point is not None:
        zero = lut.zero_point.view(torch.uint8)
    values = torch.where(zero_entries[..., None], zero, values).view(lut.values.dtype)
    return QuantizedLut(values, lut.scale, lut.zero_point)


def nearest_codes(points: Tensor, entries: Tensor) -> Tensor:
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
    ordered, order = entries.double().sort(dim=1, stable=True)
    middle = (ordered[:, 1:] + ordered[:, :-1]) / 2
    bounds = middle.to(wide)
    # Rounded down: then the comparison of a point with a bound is the exact one.
    down = torch.nextafter(bounds, torch.full_like(bounds, -math.inf))
    bounds = torch.where(bounds.double() > middle, down, bounds).contiguous()
    # Among equal entries the first: it is the last that begins at or below a bound.
    first = (ordered[:, :, None] == ordered[:, None, :]).to(torch.uint8).argmax(dim=2)
    order = order.gather(1, first).to(torch.uint8)
    codes = torch.empty(points.shape, dtype=torch.uint8, device=points.device)
    for block, piece in pieces(*points.shape):
        x = points[block, piece].to(wide).contiguous()
        place = torch.searchsorted(bounds[block], x)
        codes[block, piece] = order[block].gather(1, place)
    return codes


def squared_distances(points: Tensor, entries: Tensor) -> Tensor:
    """Return ``[B, N, K]``, Σ over D of (point − entry)²."""
    total = (points[:, :, None, 0] - entries[:, None, :, 0]).square_()
    for d in range(1, points.shape[-1]):
        total += (points[:, :, None, d] - entries[:, None, :, d]).square_()
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


def autocast_off(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Compute in the dtypes at hand: a palette in half precision is another palette."""
    if device_type == "meta" or not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


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
