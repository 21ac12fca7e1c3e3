"""Sums of squared gradients, in float32, whatever the gradients' dtype and magnitude."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

_CHUNK = {"cpu": 1 << 16}  # elements at once: in the cache of a core
_CHUNK_ELSEWHERE = 1 << 22
# Powers of two that float32 can multiply by.
_LEAST, _MOST = -120, 120


@final
class SquareSum:
    """Σ g² over gradients g of one tensor.

    Held in units of a power of two that follows the largest gradient, so that neither tiny nor
    huge gradients leave the range of float32: only the ratios between elements matter.
    Nothing is allocated before the first gradient that is not zero.

    Args:
        device: where to keep the sum; None means where the gradients are.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._total: Tensor | None = None
        self._exponent = 0

    def add(self, gradient: Tensor) -> bool:
        """Add the squares of a gradient, which may be overwritten.

        Returns:
            False, and nothing is added, where the gradient has NaN or infinite elements.
        """
        if gradient.layout is not torch.strided:
            gradient = gradient.to_dense()
        largest = _largest(gradient)
        if not math.isfinite(largest):
            return False
        if largest == 0:
            return True
        exponent = math.frexp(largest)[1]
        if gradient.dtype is not torch.float64:
            exponent = min(max(exponent, _LEAST), _MOST)
        total = self._in_units_of(exponent, gradient)
        for part, piece in _pieces(total, gradient):
            if piece.dtype is torch.float64:
                # In two steps: the power alone may be out of range.
                half = self._exponent // 2
                wide = piece * 2.0**-half * 2.0 ** (half - self._exponent)
                scaled = wide.to(part.device, torch.float32)
            else:
                scaled = piece.to(part.device, torch.float32).mul_(2.0**-self._exponent)
            part.addcmul_(scaled, scaled)
        return True

    @property
    def unit(self) -> float:
        """Unit that the elements of the sum are multiples of; infinite or 0 beyond float64."""
        try:
            return math.ldexp(1.0, 2 * self._exponent)
        except OverflowError:
            return math.inf

    def take(self) -> Tensor | None:
        """Return the sum in multiples of `unit`, and forget it; None where all was zero."""
        total, self._total = self._total, None
        return total

    def _in_units_of(self, exponent: int, gradient: Tensor) -> Tensor:
        """Return the total, for squares of gradients below ``2 ** exponent``."""
        if self._total is None:
            device = self._device or gradient.device
            self._total = torch.zeros(gradient.shape, dtype=torch.float32, device=device)
            self._exponent = exponent
        elif exponent > self._exponent:
            # Squares that become zero here are 2^-126 of what comes.
            self._total *= 2.0 ** max(2 * (self._exponent - exponent), -1000)
            self._exponent = exponent
        return self._total


def _largest(tensor: Tensor) -> float:
    """Return the largest magnitude; NaN where there is one."""
    if tensor.numel() == 0:
        return 0.0
    low, high = (float(end) for end in torch.aminmax(tensor))
    return math.nan if math.isnan(low) or math.isnan(high) else max(-low, high)


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield corresponding small views of two tensors of one shape, whatever their strides."""
    if a.dim() == 0:
        yield a, b
        return
    if a.is_contiguous() and b.is_contiguous():
        a, b = a.view(-1), b.view(-1)
    longest = max(range(a.dim()), key=lambda d: a.shape[d])
    chunk = _CHUNK.get(b.device.type, _CHUNK_ELSEWHERE)
    step = max(1, chunk * a.shape[longest] // a.numel())
    for at in range(0, a.shape[longest], step):
        size = min(step, a.shape[longest] - at)
        yield a.narrow(longest, at, size), b.narrow(longest, at, size)
