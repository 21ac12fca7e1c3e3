"""Distance of a model's outputs from those of the unchanged one."""

from __future__ import annotations

import math
from typing import Any

import torch

from palette_core._common.pytrees import floating


def has_values(output: Any) -> bool:
    """Return whether one of the floating values is finite, or there are no floating tensors."""
    floats = floating(output)
    return not floats or any(bool(torch.isfinite(x).any()) for x in floats)


def distance(truth: Any, other: Any) -> float:
    """Return Σ (a − b)² over floating outputs, each relative to its own Σ a².

    Where the truth is NaN or infinite, nothing is asked of the other; elsewhere NaN is infinite.
    """
    total = 0.0
    for a, b in zip(floating(truth), floating(other), strict=True):
        if a.shape != b.shape:
            return float("inf")
        counts = torch.isfinite(a)
        right, got = a[counts].double(), b[counts].double()
        error = float((right - got).square().sum()) / (float(right.square().sum()) or 1.0)
        total += float("inf") if math.isnan(error) else error
    return total
