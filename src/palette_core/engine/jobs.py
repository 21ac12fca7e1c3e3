"""Clustering jobs: weights, each with its plan and what is known about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from palette_core.errors import WeightError
from palette_core.planning import Plan, TensorPlan
from palette_core.statistics.gradients.reading import read_sensitivities
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
        return None if self.sensitivity is None else self.sensitivity.values


def make_jobs(
    model: nn.Module, plan: Plan, sensitivity_path: str | Path | None, *, trust: bool
) -> list[Job]:
    """Return what is to be clustered, in the plan's order.

    Args:
        model: the dense model that the plan is of.
        plan: what to do with which weight.
        sensitivity_path: a file of sensitivities, or None.
        trust: take sensitivities of other weights.

    Raises:
        WeightError: a weight is NaN or infinite.
        SensitivityError: the file does not fit.
    """
    weights = dense_weights(model, plan)
    known: dict[str, Sensitivity] = {}
    if sensitivity_path is not None:
        known = read_sensitivities(sensitivity_path, plan, weights, trust=trust)
    return [
        Job(tensor, weights[tensor.name], known.get(tensor.name), checked=True) for tensor in plan
    ]


def dense_weights(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return the dense weights of a plan by name.

    Raises:
        WeightError: one is NaN or infinite.
    """
    weights: dict[str, Tensor] = {}
    for tensor in plan:
        owner = tensor.owners[0]
        weights[tensor.name] = getattr(model.get_submodule(owner.module), owner.state).detach()
        check_finite(tensor.name, weights[tensor.name])
    return weights


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
