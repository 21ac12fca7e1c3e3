"""Shared parts of the built-in LUT quantizers: checks, normalisation, choice of candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from palette_core.errors import ClusteringError
from palette_core.tensors import QuantizedLut


def check_lut(lut: Tensor) -> None:
    """Refuse what is not a batch of tables of finite numbers.

    Raises:
        ClusteringError: naming the shape, the dtype or the first table that is not finite.
    """
    if lut.ndim != 3 or not lut.is_floating_point() or lut.numel() == 0:
        raise ClusteringError(
            f"a LUT to quantize must be non-empty floating [B, K, D], got {lut.dtype} of shape "
            f"{tuple(lut.shape)}"
        )
    if not bool(lut.isfinite().all()):
        finite = lut.isfinite().flatten(1).all(dim=1)
        raise ClusteringError(f"LUT {int((~finite).nonzero()[0])} to quantize is not finite")


def normalize(lut: Tensor) -> tuple[Tensor, Tensor]:
    """Return entries ``[B, K * D]`` float64 of largest magnitude 1, and the divisor ``[B]``."""
    entries = lut.detach().flatten(1).double()
    unit = entries.abs().amax(dim=1)
    unit = torch.where(unit > 0, unit, 1.0)
    return entries / unit[:, None], unit


def pick_best(lut: Tensor, made: list[QuantizedLut]) -> QuantizedLut:
    """Return, table by table, the first of ``made`` with the smallest squared error."""
    best = made[0]
    error = _error(lut, best)
    for other in made[1:]:
        error_other = _error(lut, other)
        better = error_other < error
        error = torch.where(better, error_other, error)
        best = choose(better, other, best)
    return best


def choose(first: Tensor, a: QuantizedLut, b: QuantizedLut) -> QuantizedLut:
    """Return tables of ``a`` where ``first`` ``[B]`` bool holds, and of ``b`` elsewhere."""
    mask = first[:, None, None]

    def merge(x: Tensor, y: Tensor) -> Tensor:
        # 8-bit floats have no `where` on every device; their bytes do.
        return torch.where(mask, x.view(torch.uint8), y.view(torch.uint8)).view(x.dtype)

    zero = None
    if a.zero_point is not None and b.zero_point is not None:
        zero = merge(a.zero_point, b.zero_point)
    return QuantizedLut(merge(a.values, b.values), torch.where(mask, a.scale, b.scale), zero)


def _error(lut: Tensor, made: QuantizedLut) -> Tensor:
    error = (lut.double() - made.dequantize().double()).flatten(1).square().sum(dim=1)
    return torch.where(error.isfinite(), error, torch.inf)
