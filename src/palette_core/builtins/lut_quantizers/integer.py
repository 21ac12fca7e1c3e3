"""LUT entries as 8-bit integers, one scale (and zero point) per look-up table."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from palette_core.builtins.lut_quantizers._scale import best_scale, to_scale
from palette_core.builtins.lut_quantizers._table import check_lut, normalize, pick_best
from palette_core.errors import ConfigError
from palette_core.plugins import LutQuantizer, NoOptions, QuantizationScheme, QuantizationSpec
from palette_core.tensors import QuantizedLut, dtype_name

_STEPS = 255  # between the lowest and the highest of 256 codes
_LADDER = np.arange(_STEPS + 1.0)  # magnitudes of levels
_MIDDLE = 128  # the code that stands for zero in a symmetric unsigned LUT


@final
class IntegerLutQuantizer(LutQuantizer):
    """Quantizes LUT entries to int8 or uint8.

    The scale is the one with the smallest squared error of the entries, exactly; in the
    asymmetric scheme, among those that clip no entry. The result is never worse than the usual
    formula: largest magnitude over 127.5 (127 with clipping), or range including zero over 255.

    Args:
        spec: ``dtype`` int8 or uint8; any scheme.
        options: none.

    Raises:
        ConfigError: another dtype.
    """

    def __init__(self, spec: QuantizationSpec, options: NoOptions | None = None) -> None:
        del options
        if spec.dtype not in (torch.int8, torch.uint8):
            raise ConfigError(
                f"the integer LUT quantizer makes int8 and uint8, got dtype "
                f"{dtype_name(spec.dtype)}"
            )
        self.dtype: torch.dtype = spec.dtype
        self.scheme = spec.qscheme
        info = torch.iinfo(self.dtype)
        clipping = self.scheme is QuantizationScheme.SYMMETRIC_WITH_CLIPPING
        self.lowest = info.min + int(clipping)
        self.highest: int = info.max

    def quantize(self, lut: Tensor) -> QuantizedLut:
        """Quantize ``[B, K, D]`` floating entries.

        Returns:
            ``values`` in the spec's dtype; ``scale`` ``[B, 1, 1]`` float32; ``zero_point``
            ``[B, 1, 1]`` in the spec's dtype, or None for symmetric int8.

        Raises:
            ClusteringError: the entries are not ``[B, K, D]`` floating, or not finite.
        """
        check_lut(lut)
        if lut.device.type == "cpu":
            return self._on_cpu(lut.detach())
        scaled = self._candidates(lut)
        return pick_best(lut, [self._round(lut, scale, zero) for scale, zero in scaled])

    def _candidates(self, lut: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return scales ``[B]`` float64 to choose from, each with its zero points."""
        entries, unit = normalize(lut)
        is_symmetric = self.scheme is not QuantizationScheme.ASYMMETRIC
        made = self._symmetric(entries) if is_symmetric else self._asymmetric(entries)
        return [(scale * unit, zero) for scale, zero in made]

    def _on_cpu(self, lut: Tensor) -> QuantizedLut:
        """Do the same by kernels, which spare small tables dozens of calls of torch."""
        from palette_core._common.threads import map_threads, slices_of, thread_count
        from palette_core.builtins.lut_quantizers import _integer_kernel as kernels

        values, made = torch.empty(lut.shape, dtype=self.dtype), torch.empty(len(lut), 2)
        table, scales = lut.double().flatten(1).numpy(), made.numpy()
        into = values.view(len(lut), -1).numpy()
        if self.scheme is QuantizationScheme.ASYMMETRIC:
            candidates = zip(*self._candidates(lut), strict=True)
            chosen_from = (torch.stack(parts).numpy() for parts in candidates)
            kernels.round_to_best(table, *chosen_from, self.lowest, self.highest, into, scales)
        else:
            range_ = int(self._center()), self.lowest, self.highest

            def part(at: slice) -> None:
                kernels.quantize_symmetric(table[at], _LADDER, *range_, into[at], scales[at])

            map_threads(part, slices_of(len(lut), -(-len(lut) // thread_count())))
        scale, point = made.t()[..., None, None]
        return QuantizedLut(values, scale, self._stored_zero(point))

    def _symmetric(self, entries: Tensor) -> list[tuple[Tensor, Tensor]]:
        center = int(self._center())
        up, down = self.highest - center, center - self.lowest
        zero = torch.full_like(entries[:, 0], center)
        # Half a code more than the highest where the lowest code goes one further down.
        usual = entries.abs().amax(dim=1) / ((up + down) / 2)
        return [(usual, zero), (best_scale(entries, self._ladder(entries), up, down), zero)]

    def _asymmetric(self, entries: Tensor) -> list[tuple[Tensor, Tensor]]:
        low = entries.amin(dim=1).clamp(max=0.0)
        usual = (entries.amax(dim=1).clamp(min=0.0) - low) / _STEPS
        best = best_scale(entries, self._ladder(entries), _STEPS, _STEPS, _STEPS)
        return [(scale, self._zero_point(low, scale)) for scale in (usual, best)]

    def _zero_point(self, low: Tensor, scale: Tensor) -> Tensor:
        """Return the zero point that gives the lowest entry the lowest code."""
        steps = (low / torch.where(scale > 0, scale, 1.0)).round()
        return (self.lowest - steps).clamp(self.lowest, self.highest)

    def _ladder(self, entries: Tensor) -> Tensor:
        return torch.arange(_STEPS + 1, dtype=entries.dtype, device=entries.device)

    def _round(self, lut: Tensor, scale: Tensor, zero: Tensor) -> QuantizedLut:
        stored = to_scale(scale)[:, None, None]
        point = zero[:, None, None]
        levels = (lut.double() / stored.double()).round() + point
        values = levels.clamp(self.lowest, self.highest).to(self.dtype)
        return QuantizedLut(values, stored, self._stored_zero(point))

    def _stored_zero(self, point: Tensor) -> Tensor | None:
        absent = self.dtype is torch.int8 and self.scheme is not QuantizationScheme.ASYMMETRIC
        return None if absent else point.to(self.dtype)

    def _center(self) -> float:
        return float(_MIDDLE if self.dtype is torch.uint8 else 0)
