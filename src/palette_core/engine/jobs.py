"""Clustering jobs: weights, each with its plan and what is known about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from palette_core.errors import WeightError
from palette_core.planning import TensorPlan
from palette_core.tensors.moments import InputMoments
from palette_core.tensors.sensitivities import Sensitivity


@dataclass(frozen=True)
class Job:
    """One weight to cluster.

    Attributes:
        plan: the decisions.
        weight: of ``plan.shape``; read only.
        sensitivity: how much each element matters; None is the same for all. Of no account to
            an algorithm that goes by moments and does not take it.
        moments: second moments of the layer's inputs, usable ones.
        checked: `check_finite` has passed already.
    """

    plan: TensorPlan
    weight: Tensor
    sensitivity: Sensitivity | None = None
    moments: InputMoments | None = None
    checked: bool = False

    @property
    def importance(self) -> Tensor | None:
        """Non-negative, of the weight's shape; None means ones."""
        return None if self.sensitivity is None else self.sensitivity.importance()


def check_finite(name: str, weight: Tensor) -> None:
    """Raise a `WeightError` that names the tensor and its first bad element."""
    if weight.is_meta:
        raise WeightError(f"{name} is on the meta device and has no values; load weights first")
    if weight.numel() == 0 or all(math.isfinite(float(end)) for end in torch.aminmax(weight)):
        return
    bad = (~torch.isfinite(weight)).nonzero()
    where = tuple(int(i) for i in bad[0])
    raise WeightError(
        f"{name}: {len(bad)} of {weight.numel()} weights are NaN or infinite, the first "
        f"{weight[where].item()} at {where}; repair the model, or leave this tensor out with None"
    )
