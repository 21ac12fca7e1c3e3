"""What calibration must measure, by plain autograd on a dense model and a loop over steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def squares(
    dense: nn.Module,
    names: Iterable[str],
    steps: Iterable[Callable[[nn.Module], Tensor]],
) -> dict[str, Tensor]:
    """Σ over steps of the squared gradient of each loss, in float64."""
    dense.requires_grad_(True)
    parameters = dict(dense.named_parameters(remove_duplicate=False))
    total = {name: torch.zeros_like(parameters[name], dtype=torch.float64) for name in names}
    for loss_of in steps:
        dense.zero_grad(set_to_none=True)
        loss_of(dense).backward()
        for name in total:
            gradient = parameters[name].grad
            if gradient is not None:
                total[name] += gradient.to_dense().double() ** 2
    return total


def documented(total: Tensor) -> Tensor:
    """Positive, at most 1, zeros as the smallest that is not, clipped at 1e-12; all zeros: ones."""
    if not bool((total > 0).any()):
        return torch.ones_like(total)
    scaled = total / total.max()
    scaled[scaled == 0] = scaled[scaled > 0].min()
    return scaled.clamp(min=1e-12)


def measured(model: nn.Module) -> dict[str, Any]:
    """The sensitivities that a prepared model holds, by name."""
    from palette_core.palettizer.palettized_weight import PalettizedWeight
    from palette_core.storage.sites import palette_sites

    return {
        name: None if site.palette.sensitivity is None else site.palette.sensitivity.values
        for site in palette_sites(model, PalettizedWeight)
        for name in site.names
    }
