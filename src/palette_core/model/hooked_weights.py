"""Weights that a hook computes before every call, turned into parametrizations.

``torch.nn.utils.prune`` and the old ``torch.nn.utils.weight_norm`` keep a weight's parts under
other names and set the weight as a plain attribute in a hook. A palette needs a place in that
computation, so the same computation becomes a parametrization: the parameters stay the same
objects, and optimizers that hold them go on.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils.hooks import RemovableHandle

from palette_core._common.modules import modules_of
from palette_core._common.undoing import undone
from palette_core.model.parametrization import attach, parametrizations


@final
class PruningMask(nn.Module):
    """Multiplies a weight with the mask that pruning made of it."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros where it is pruned."""
        return weight * self.mask.to(weight.dtype)


@final
class NormedWeight(nn.Module):
    """Makes a weight of magnitudes and directions (Salimans and Kingma, arXiv 1602.07868).

    Args:
        dim: the axis that keeps its norms apart; −1 is one norm for all.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        """Return the weight."""
        return torch._weight_norm(direction, magnitude, self.dim)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return magnitude and direction of a weight."""
        return torch.norm_except_dim(weight, 2, self.dim), weight


def is_replaceable(module: nn.Module, name: str) -> bool:
    """Return whether ``module.<name>`` is a plain attribute that one known hook computes."""
    return (
        isinstance(vars(module).get(name), Tensor)
        and not isinstance(module, nn.RNNBase)
        and len(_hooks(module, name)) == 1
    )


def made_of(module: nn.Module, name: str) -> tuple[str, ...]:
    """Return the states that a known hook computes ``module.<name>`` from; none without one."""
    if not is_replaceable(module, name):
        return ()
    ((_, hook),) = _hooks(module, name)
    parts = ("g", "v") if isinstance(hook, WeightNorm) else ("orig", "mask")
    return tuple(f"{name}_{part}" for part in parts)


@contextlib.contextmanager
def computed_once(model: nn.Module) -> Iterator[None]:
    """Let known hooks compute their weights now, and keep to that tensor whenever they run."""
    handles: list[RemovableHandle] = []
    with undone(handles, RemovableHandle.remove):
        for module in [each for each in modules_of(model) if each._forward_pre_hooks]:
            for name in [name for name in vars(module) if is_replaceable(module, name)]:
                ((_, hook),) = _hooks(module, name)
                with torch.no_grad():
                    hook(module, ())
                held = functools.partial(_hold, name, getattr(module, name))
                handles.append(module.register_forward_pre_hook(held))
        yield


def _hold(name: str, value: Tensor, module: nn.Module, args: Any) -> None:
    del args
    vars(module)[name] = value


def replace_hook(module: nn.Module, name: str) -> None:
    """Compute ``module.<name>`` by parametrizations where a hook did; do nothing elsewhere."""
    if not is_replaceable(module, name):
        return
    ((key, hook),) = _hooks(module, name)
    value = vars(module).pop(name)
    del module._forward_pre_hooks[key]
    if isinstance(hook, WeightNorm):
        _normed(module, name, hook.dim, value)
    else:
        mask = cast("Tensor", module._buffers.pop(f"{name}_mask"))
        module.register_parameter(name, module._parameters.pop(f"{name}_orig"))
        attach(module, name, PruningMask(mask))


def _normed(module: nn.Module, name: str, dim: int, value: Tensor) -> None:
    magnitude = module._parameters.pop(f"{name}_g")
    direction = module._parameters.pop(f"{name}_v")
    module.register_parameter(name, nn.Parameter(value.detach().clone()))
    attach(module, name, NormedWeight(dim))
    chain: Any = parametrizations(module)[name]
    chain.original0, chain.original1 = magnitude, direction


def _hooks(module: nn.Module, name: str) -> list[tuple[int, Any]]:
    """Return the hooks that are known to compute ``module.<name>``, by their keys."""
    found = []
    for key, hook in module._forward_pre_hooks.items():
        pruned = isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == name
        normed = isinstance(hook, WeightNorm) and hook.name == name
        if pruned or normed:
            found.append((key, hook))
    return found
