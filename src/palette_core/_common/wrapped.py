"""Weights of other people's quantizers: tensors made of tensors, and modules that hide theirs."""

from __future__ import annotations

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PACKED_AWAY = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")


def packs_away(module_type: str) -> bool:
    """Return whether modules of a type, by its full name, keep weights in no tensor of theirs."""
    return module_type.startswith(_PACKED_AWAY)


def inner_tensors(tensor: Tensor, name: str = "") -> dict[str, Tensor]:
    """Return the plain tensors that a tensor is made of, by name: ``"weight.qdata"``.

    Args:
        tensor: of any class.
        name: of the tensor; a plain one is returned under it.
    """
    if not is_traceable_wrapper_subclass(tensor):
        return {name: tensor}
    attributes, _ = tensor.__tensor_flatten__()
    found: dict[str, Tensor] = {}
    for attribute in attributes:
        found |= inner_tensors(getattr(tensor, attribute), f"{name}.{attribute}")
    return found
