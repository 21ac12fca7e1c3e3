"""Metrics that look at one weight and what was measured about it."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from palette_core.errors import AllocationError
from palette_core.plugins import Candidate, SensitivityMetric


@final
class DataFree(SensitivityMetric):
    """Relative squared error, Σ ΔW² / Σ W².

    For small errors the loss of a model grows linearly in it (Malinovskii et al. 2024, "Pushing
    the Limits of Large Language Model Quantization via the Linearity Theorem", theorem 1); the
    slopes, which only data could tell, are taken to be equal.
    """

    def __init__(self, options: Any) -> None:
        del options  # it has none

    def loss(self, candidate: Candidate) -> float:
        """Return the relative squared error."""
        norm = float(candidate.weight.double().square().sum())
        return float(_error(candidate).square().sum()) / norm if norm else 0.0


@final
class Fisher(SensitivityMetric):
    """½ Σ g² ΔW² with mean squared gradients g² of the loss.

    The second-order growth of the loss with the diagonal of the empirical Fisher matrix for its
    Hessian (Kim et al. 2023, "SqueezeLLM", section 4.1).
    """

    def __init__(self, options: Any) -> None:
        del options  # it has none

    def loss(self, candidate: Candidate) -> float:
        """Return the predicted growth of the loss.

        Raises:
            AllocationError: without squares of gradients.
        """
        if candidate.squares is None:
            raise AllocationError(f"{candidate.name}: metric 'fisher' needs squared gradients")
        squares = candidate.squares.to(candidate.weight.device, torch.float64)
        return 0.5 * float((_error(candidate).square() * squares).sum())


@final
class Hessian(SensitivityMetric):
    """tr(ΔW H ΔWᵀ) with the second moments H of the layer's input: its mean squared output error.

    The objective of Frantar et al. 2022, "GPTQ", section 3.
    """

    def __init__(self, options: Any) -> None:
        del options  # it has none

    def loss(self, candidate: Candidate) -> float:
        """Return the mean squared error of the layer's output, summed over channels.

        Raises:
            AllocationError: without moments of the input.
        """
        moments = candidate.moments
        if moments is None:
            raise AllocationError(f"{candidate.name}: metric 'hessian' needs moments of its input")
        error = moments.to_matrices(_error(candidate))
        hessian = moments.hessian.to(error.device, torch.float64)
        if moments.is_diagonal:
            rows = (error.square() * hessian[:, None, :]).sum(-1)
        else:
            rows = ((error @ hessian) * error).sum(-1)
        if moments.share is not None:
            rows = rows * moments.share.to(rows.device, rows.dtype).reshape(rows.shape)
        return max(float(rows.sum()), 0.0)


def _error(candidate: Candidate) -> Tensor:
    return candidate.decoded.double() - candidate.weight.double()
