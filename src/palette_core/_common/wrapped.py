"""Tensors of classes that store their values in other tensors, as those of quantizers do."""

from __future__ import annotations

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def parts_of(tensor: Tensor, name: str = "") -> dict[str, Tensor]:
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
        found |= parts_of(getattr(tensor, attribute), f"{name}.{attribute}")
    return found
