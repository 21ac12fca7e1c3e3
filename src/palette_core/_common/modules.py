"""Modules of a model and their tensors, found more quickly than torch's own generators do."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_PLAIN = (Tensor, nn.Parameter)
# What most attributes of a module are: to look these up is quicker than to ask for subclasses.
_NO_TENSORS = frozenset({bool, int, float, str, type(None), tuple, list, dict, set, OrderedDict})


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return a model and all modules inside, each once, in the order of ``model.modules()``."""
    return [module for _, module in named_modules(model)]


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the same with their names, as ``model.named_modules()`` gives them."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()
    left: list[tuple[str, nn.Module]] = [("", model)]
    while left:
        name, module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        found.append((name, module))
        inside = module._modules
        if inside:
            prefix = f"{name}." if name else ""
            parts = [(prefix + key, part) for key, part in inside.items() if part is not None]
            left += reversed(parts)
    return found


def all_names(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what ``model.named_modules(remove_duplicate=False)`` gives: each by every name."""
    found: list[tuple[str, nn.Module]] = []
    _add_names("", model, found)
    return found


def _add_names(name: str, module: nn.Module, found: list[tuple[str, nn.Module]]) -> None:
    # A function of its own: one inside that calls itself would be garbage, and hold the model.
    found.append((name, module))
    inside = module._modules
    if inside:
        prefix = f"{name}." if name else ""
        for key, part in inside.items():
            if part is not None:
                _add_names(prefix + key, part, found)


def plain_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the tensors that are attributes of a module like any other."""
    own = vars(module)
    if _NO_TENSORS.issuperset(map(type, own.values())):
        return []  # as for most modules, and quickly
    return [
        (name, value)
        for name, value in own.items()
        if type(value) not in _NO_TENSORS and isinstance(value, Tensor)
    ]


def is_lazy(tensor: Tensor) -> bool:
    """Return whether a parameter or buffer has no shape yet."""
    return type(tensor) not in _PLAIN and torch.nn.parameter.is_lazy(tensor)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return a module's own tensors that have a shape, as operations receive them."""
    found = [tensor for _, tensor in plain_tensors(module)]
    for registry in (module._parameters, module._buffers):
        if registry:
            found += [t for t in registry.values() if t is not None and not is_lazy(t)]
    return found + [getattr(module, name) for name in parametrized_names(module)]


def type_of(module: nn.Module) -> type[nn.Module]:
    """Return the type of a module, without the class that parametrizations have given it."""
    if "parametrizations" not in module._modules:
        return type(module)  # as most; torch asks by an attribute that is missing
    return parametrize.type_before_parametrizations(module)


def parametrized_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of parametrized tensors, as torch does, without a failing ``getattr``."""
    if "parametrizations" not in module._modules or not parametrize.is_parametrized(module):
        return ()
    return tuple(module.parametrizations)  # type: ignore[arg-type]
