"""LUT entries as 8-bit floats, one scale per look-up table."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from palette_core.builtins.lut_quantizers._scale import best_scale, to_scale
from palette_core.builtins.lut_quantizers._table import check_lut, normalize, pick_best
from palette_core.errors import ConfigError
from palette_core.plugins import LutQuantizer, NoOptions, QuantizationSpec
from palette_core.tensors import FP8_DTYPES, QuantizedLut, dtype_name


@final
class Float8LutQuantizer(LutQuantizer):
    """Quantizes LUT entries to float8_e4m3fn or float8_e5m2, symmetric, without zero point.

    The scale is the one with the smallest squared error of the entries: exactly so with a
    float32 scale, by trying every useful power of two with ``scale_dtype=float8_e8m0fnu``. The
    result is never worse than the usual formula, largest magnitude over the dtype's largest.

    Args:
        spec: ``dtype`` float8_e4m3fn or float8_e5m2.
        options: none.

    Raises:
        ConfigError: another dtype.
    """

    def __init__(self, spec: QuantizationSpec, options: NoOptions | None = None) -> None:
        del options
        if spec.dtype not in FP8_DTYPES:
            raise ConfigError(
                "the 8-bit float LUT quantizer makes float8_e4m3fn and float8_e5m2, got dtype "
                f"{dtype_name(spec.dtype)}"
            )
        self.dtype: torch.dtype = spec.dtype
        self.power_of_two = spec.scale_dtype is not None
        self.largest = torch.finfo(self.dtype).max
        codes = torch.arange(128, dtype=torch.uint8).view(self.dtype).double()
        self.ladder = codes[codes.isfinite()]

    def quantize(self, lut: Tensor) -> QuantizedLut:
        """Quantize ``[B, K, D]`` floating entries.

        Returns:
            ``values`` in the spec's dtype; ``scale`` ``[B, 1, 1]`` float32; no zero point.

        Raises:
            ClusteringError: the entries are not ``[B, K, D]`` floating, or not finite.
        """
        check_lut(lut)
        if self.power_of_two:
            return pick_best(lut, [self._round(lut, scale) for scale in self._powers(lut)])
        entries, unit = normalize(lut)
        ladder = self.ladder.to(lut.device)
        climb = ladder.numel() - 1
        usual = entries.abs().amax(dim=1) / self.largest
        scales = [usual, best_scale(entries, ladder, climb, climb)]
        return pick_best(lut, [self._round(lut, scale * unit) for scale in scales])

    def _powers(self, lut: Tensor) -> list[Tensor]:
        """Powers of two from just clipping the largest entry to it being the smallest level."""
        size = lut.detach().flatten(1).double().abs().amax(dim=1)
        exponent = torch.where(size > 0, (size / self.largest).log2().ceil(), 0.0)
        span = torch.log2(self.ladder[-1] / self.ladder[1]).ceil()
        offsets = [0, -1, *range(1, int(span) + 2)]
        # float8_e8m0fnu holds exponents from -127 to 127.
        return [torch.exp2((exponent + k).clamp(-127, 127)) for k in offsets]

    def _round(self, lut: Tensor, scale: Tensor) -> QuantizedLut:
        stored = to_scale(scale)[:, None, None]
        levels = (lut.double() / stored.double()).clamp(-self.largest, self.largest)
        return QuantizedLut(self._nearest(levels), stored)

    def _nearest(self, levels: Tensor) -> Tensor:
        """Round float64 to the dtype in one step; a cast through float32 would round twice."""
        ladder = self.ladder.to(levels.device)
        middle = (ladder[1:] + ladder[:-1]) / 2
        code = torch.bucketize(levels.abs(), middle).to(torch.uint8)
        return torch.where(levels < 0, code | 128, code).view(self.dtype)
