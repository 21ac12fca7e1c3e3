"""Points that are numbers: the compiled loops would go astray with others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from palette_core.errors import WeightError


def check_finite(points: Tensor) -> None:
    """Refuse points of any shape, at least one, that are no numbers.

    Raises:
        WeightError: some are NaN or infinite.
    """
    if not all(math.isfinite(end) for end in ends_of(points)):
        raise WeightError("kmeans1d got points that are NaN or infinite; all must be finite")


def ends_of(values: Tensor) -> tuple[float, float]:
    """Return the least and the greatest of values, NaN where there is one."""
    least, most = torch.aminmax(values)
    return float(least), float(most)
