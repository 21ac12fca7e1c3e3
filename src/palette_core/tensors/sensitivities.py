"""Sensitivities: how much each element of a weight matters to the loss. Values only, no files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from palette_core.tensors.dtypes import dtype_name

_PRIOR = 4.0  # batches; chosen on synthetic pictures, see benchmarks/few_batches.py
# In float32, so that values written at this limit are not below it when read again.
_TINY = float(np.float32(1e-12))


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivities of one weight, and what they were measured on.

    Attributes:
        values: float32 on the CPU, of the weight's shape, from 0 to 1.
        fingerprint: of the weight, see `fingerprint`.
        scale: the largest mean squared gradient, which ``values`` are divided by; None where a
            file does not say.
        batches: how many squared gradients were added up; None where a file does not say.
    """

    values: Tensor
    fingerprint: str
    scale: float | None = None
    batches: int | None = None

    def importance(self) -> Tensor:
        """Return what errors of elements count in clustering: float32, of the weight's shape.

        Few squared gradients say little about single elements: most come out as if they did not
        matter, and are served by any entry. So the mean of the weight counts as `_PRIOR` batches
        beside those that were measured, as the mean of a conjugate prior does. Where nothing is
        known of batches, values count as they are.
        """
        if self.batches is None:
            return self.values
        return self.values + self.values.double().mean().float() * (_PRIOR / self.batches)

    def squares(self) -> Tensor:
        """Return mean squared gradients: float32, of the weight's shape.

        Raises:
            ValueError: ``scale`` is not known.
        """
        if self.scale is None:
            raise ValueError("sensitivities without a scale say nothing about other weights")
        return self.values * self.scale


def normalized(sensitivity: Tensor) -> Tensor:
    """Scale to at most 1, as float32, with tiny values 0; all zeros become ones (plain k-means).

    What `from_squares` returns comes back bit for bit.
    """
    wide = sensitivity.double()
    largest = wide.max()
    if not bool(largest > 0):
        return torch.ones_like(wide, dtype=torch.float32)
    scaled = wide / largest
    return torch.where(scaled < _TINY, 0.0, scaled).float()


def from_squares(squares: Tensor) -> Tensor:
    """Turn sums of squared gradients into sensitivities: positive, the largest 1.

    Elements that got no gradient in the calibration may do so elsewhere, so they take the
    smallest positive value of the tensor; nothing is below 1e-12. All zeros become ones.

    Args:
        squares: float32, finite, not negative; overwritten.
    """
    largest = squares.max()
    if not bool(largest > 0):
        return squares.fill_(1)
    # Before the division, which may make zeros of small values.
    smallest = torch.where(squares > 0, squares, largest).min()
    squares.masked_fill_(squares == 0, float(smallest))
    return squares.div_(largest).clamp_(min=_TINY)


def fingerprint(weight: Tensor) -> str:
    """Return the dtype and the SHA-256 of the weight's values, in the order of its indices."""
    data = weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{dtype_name(weight.dtype)}:{hashlib.sha256(data).hexdigest()}"  # type: ignore[arg-type]
