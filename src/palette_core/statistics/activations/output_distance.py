"""Distance of a model's outputs from those of the unchanged one."""

from __future__ import annotations

import math
from typing import Any

import torch

from palette_core._common.pytrees import floating, said_of


def why_nothing(output: Any) -> str | None:
    """Return why nothing can be judged by what a model or a stage returns, or None."""
    floats = floating(output)
    if not floats:
        return f"holds no floating tensor: {said_of(output)}"
    if not any(bool(torch.isfinite(x).any()) for x in floats):
        return "is empty, or NaN or infinite throughout"
    return None


def distance(truth: Any, other: Any) -> float:
    """Return Σ (a − b)² over floating outputs, each relative to its own Σ a².

    Where the truth is NaN or infinite, nothing is asked of the other; elsewhere NaN is infinite.
    Outputs of other numbers or shapes are infinitely far.
    """
    total = 0.0
    firsts, seconds = floating(truth), floating(other)
    if len(firsts) != len(seconds):
        return float("inf")
    for a, b in zip(firsts, seconds, strict=True):
        if a.shape != b.shape:
            return float("inf")
        counts = torch.isfinite(a)
        right, got = a[counts].double(), b[counts].double()
        error = float((right - got).square().sum()) / (float(right.square().sum()) or 1.0)
        total += float("inf") if math.isnan(error) else error
    return total
