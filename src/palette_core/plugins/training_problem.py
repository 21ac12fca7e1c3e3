"""A palettized weight in the middle of training, as a training strategy sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from palette_core.tensors.codebook import Codebook, QuantizedLut
from palette_core.tensors.nearest import assign, straight_through
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.scales import apply_scale, divide_by_scale
from palette_core.tensors.zeros import with_zeros, zero_mask


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
            weight = divide_by_scale(weight, scale)
        return self.palettized.layout.split(weight)

    def merge(self, points: Tensor) -> Tensor:
        """Return the weight that points ``[B, N, D]`` stand for, as decoding would."""
        weight = self.palettized.layout.merge(points.to(self.weight.dtype))
        scale = self.palettized.scale
        return weight if scale is None else apply_scale(weight, scale)

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
        """Return `assign`; what is exactly zero stays so where the spec demands it."""
        codes = assign(points.detach(), entries.detach())
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
