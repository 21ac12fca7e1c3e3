"""The tensors that hang in a module, as operations receive them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from palette_core._common.modules import is_lazy, parametrized_names, plain_tensors
from palette_core.model.hooked_weights import is_replaceable, made_of

_PLAIN = (Tensor, nn.Parameter)
# What tensor classes have that compute as torch does; bound methods, compared by equality.
_ORDINARY = (Tensor.__torch_function__, nn.Parameter.__torch_function__)


class State(NamedTuple):
    """A tensor that hangs in a module.

    Attributes:
        module: the owner.
        name: in the owner.
        tensor: as operations receive it.
        kind: ``"parameter"``, ``"buffer"``, ``"ingredient"``: what a known hook computes another
            state from, or ``"constant"``: a plain attribute that nothing known computes.
        is_computed: by a parametrization.
    """

    module: nn.Module
    name: str
    tensor: Tensor
    kind: str
    is_computed: bool = False

    @property
    def obstacle(self) -> str | None:
        """Return why it cannot be replaced where it hangs, or None."""
        if self.kind == "constant":
            return _constant_obstacle(self.module, self.name)
        owner = None if self.is_computed else _module_obstacle(self.module)
        return owner or _tensor_obstacle(self.tensor)


def states_of(module: nn.Module) -> list[State]:
    """Return a module's own tensors that have a shape."""
    found: list[State] = []
    plain = plain_tensors(module)
    registries = module._parameters, module._buffers
    if not (plain or any(registries) or "parametrizations" in module._modules):
        return found  # as most modules
    # What known hooks compute others from: masked weights, masks, norms.
    made_from = {each for name, _ in plain for each in made_of(module, name)}
    for kind, registry in (("parameter", module._parameters), ("buffer", module._buffers)):
        for name, tensor in registry.items():
            if tensor is not None and not is_lazy(tensor):
                found.append(
                    State(module, name, tensor, "ingredient" if name in made_from else kind)
                )
    for name in parametrized_names(module):
        found.append(State(module, name, getattr(module, name), "parameter", is_computed=True))
    for name, value in plain:
        kind = "parameter" if is_replaceable(module, name) else "constant"
        found.append(State(module, name, value, kind))
    return found


def _module_obstacle(module: nn.Module) -> str | None:
    """Return why nothing that hangs in a module can be replaced, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return "its module is compiled to TorchScript; palettize the model it was made from"
    if type(module).__setattr__ is not nn.Module.__setattr__:
        try:
            module.__class__ = type(module)
        except Exception as error:
            return (
                f"{type(module).__name__} refuses that its class is replaced, which a palette "
                f"needs ({type(error).__name__}: {error})"
            )
    return None


def _tensor_obstacle(tensor: Tensor) -> str | None:
    """Return why a tensor cannot be palettized whatever holds it, or None."""
    kind = type(tensor)
    if tensor.layout is not torch.strided:
        return f"it is sparse ({str(tensor.layout).removeprefix('torch.')}); make it dense first"
    if tensor.is_quantized:
        return "it is quantized already; palettize the weight that it was made from"
    if kind not in _PLAIN and (
        kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
        or kind.__torch_function__ not in _ORDINARY
    ):
        return f"it is a {kind.__name__}, a tensor class that stores its values in its own way"
    if tensor.is_inference():
        return (
            "it was made in torch.inference_mode and cannot be changed; load the model outside of "
            "it, or make the tensor anew with clone()"
        )
    return None


def _constant_obstacle(module: nn.Module, name: str) -> str:
    made_of = module._parameters
    if f"{name}_orig" in made_of or f"{name}_g" in made_of:
        return (
            "it is computed before every call by hooks such as those of spectral_norm; make that "
            "permanent first (remove_spectral_norm, torch.nn.utils.prune.remove), or use "
            "torch.nn.utils.parametrizations"
        )
    return "it is a plain attribute; register it as a parameter or buffer first"


def is_parametrization(name: str) -> bool:
    """Return whether a module is a parametrization by its name, and no part of the model."""
    return "parametrizations" in name.split(".")
