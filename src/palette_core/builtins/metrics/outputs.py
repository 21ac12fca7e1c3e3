"""The metric that runs the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor

from palette_core.builtins.metrics.options import OutputOptions
from palette_core.errors import AllocationError
from palette_core.plugins import Candidate, SensitivityMetric


@final
class OutputDivergence(SensitivityMetric):
    """Movement of the model's outputs on calibration batches when one weight is palettized."""

    def __init__(self, options: OutputOptions) -> None:
        self._divergence = _kl if options.divergence == "kl" else _mse

    def loss(self, candidate: Candidate) -> float:
        """Return the mean divergence over the batches.

        Raises:
            AllocationError: without calibration batches.
        """
        if candidate.outputs is None:
            raise AllocationError(f"{candidate.name}: metric 'output' needs calibration batches")
        before, after = candidate.outputs(None), candidate.outputs(candidate.decoded)
        each = [self._divergence(a, b) for a, b in zip(before, after, strict=True)]
        return max(sum(each) / len(each), 0.0)


def _mse(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    norm = sum(float(a.double().square().sum()) for a in before)
    error = sum(
        float((b.double() - a.double()).square().sum()) for a, b in zip(before, after, strict=True)
    )
    return error / norm if norm else error


def _kl(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the mean over positions of the divergence of the first output, the logits."""
    p = F.log_softmax(before[0].double(), dim=-1)
    q = F.log_softmax(after[0].double(), dim=-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
