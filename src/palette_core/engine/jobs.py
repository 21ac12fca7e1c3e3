"""What is to be clustered: weights, each with its plan and what is known about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from palette_core.errors import WeightError
from palette_core.planning import Plan, TensorPlan
from palette_core.tensors.moments import InputMoments
from palette_core.tensors.sensitivities import Sensitivity


@dataclass(frozen=True)
class Job:
    """One weight to cluster.

    Attributes:
        plan: the decisions.
        weight: of ``plan.shape``; read only.
        importance: non-negative, of the weight's shape; None means ones. Of no account to an
            algorithm that goes by moments and does not take it.
        moments: second moments of the layer's inputs, usable ones.
        checked: `check_finite` has passed already.
    """

    plan: TensorPlan
    weight: Tensor
    importance: Tensor | None = None
    moments: InputMoments | None = None
    checked: bool = False


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


def make_jobs(
    plan: Plan, weights: Mapping[str, Tensor], sensitivities: Mapping[str, Sensitivity]
) -> list[Job]:
    """Return what is to be clustered, in the plan's order; the weights are finite."""
    return [
        Job(
            tensor,
            weights[tensor.name],
            sensitivities[tensor.name].values if tensor.name in sensitivities else None,
            checked=True,
        )
        for tensor in plan
    ]
