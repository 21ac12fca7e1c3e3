"""The tensors that hang in a module, as operations receive them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palette_core.model.hooked_weights import is_replaceable

_PLAIN = (Tensor, nn.Parameter)
# What most attributes of a module are: to look these up is quicker than to ask for subclasses.
_NO_TENSORS = frozenset({bool, int, float, str, type(None), tuple, list, dict, set, OrderedDict})


def is_lazy(tensor: Tensor) -> bool:
    """Whether a parameter or buffer has no shape yet."""
    return torch.nn.parameter.is_lazy(tensor)


def states_of(module: nn.Module) -> Iterator[tuple[str, Tensor, str, str | None]]:
    """Yield name, tensor as operations receive it, kind and obstacle of a module's own tensors."""
    obstacle = None
    if isinstance(module, torch.jit.ScriptModule):
        obstacle = "its module is compiled to TorchScript; palettize the model it was made from"
    for name, parameter in module._parameters.items():
        if parameter is not None and not is_lazy(parameter):
            yield name, parameter, "parameter", obstacle
    for name, buffer in module._buffers.items():
        if buffer is not None and not is_lazy(buffer):
            yield name, buffer, "buffer", obstacle
    for name in _parametrized(module):
        yield name, getattr(module, name), "parameter", None
    for name, value in vars(module).items():
        if type(value) not in _NO_TENSORS and isinstance(value, Tensor):
            if is_replaceable(module, name):
                yield name, value, "parameter", obstacle
            else:
                yield name, value, "constant", _constant_obstacle(module, name)


def _constant_obstacle(module: nn.Module, name: str) -> str:
    made_of = module._parameters
    if f"{name}_orig" in made_of or f"{name}_g" in made_of:
        return (
            "it is computed before every call by hooks such as those of spectral_norm; make that "
            "permanent first (remove_spectral_norm, torch.nn.utils.prune.remove), or use "
            "torch.nn.utils.parametrizations"
        )
    return "it is a plain attribute; register it as a parameter or buffer first"


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors of `states_of`, and no more about them: many modules are asked often."""
    for registry in (module._parameters, module._buffers):
        for tensor in registry.values():
            if tensor is not None and (type(tensor) in _PLAIN or not is_lazy(tensor)):
                yield tensor
    for name in _parametrized(module):
        yield getattr(module, name)
    for value in vars(module).values():
        if type(value) not in _NO_TENSORS and isinstance(value, Tensor):
            yield value


def _parametrized(module: nn.Module) -> tuple[str, ...]:
    """Return the names of parametrized tensors, as torch does, without a failing ``getattr``."""
    if "parametrizations" not in module._modules or not parametrize.is_parametrized(module):
        return ()
    return tuple(module.parametrizations)  # type: ignore[arg-type]


def is_parametrization(name: str) -> bool:
    """Whether a module's name is that of a parametrization, which is no part of the model."""
    return "parametrizations" in name.split(".")
