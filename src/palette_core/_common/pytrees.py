"""Tensors in what models take and return.

They are alone, or in tuples, lists, mappings and classes registered with torch's trees, in any
depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def floating(value: Any) -> list[Tensor]:
    """Return the floating tensors of a value, in order."""
    return [tensor for tensor in tensors(value) if tensor.is_floating_point()]


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a value, in order."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):  # of a class that is not registered
            for item in leaf.values():
                yield from tensors(item)


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a value with every tensor in it exchanged.

    All else stays as it is, mappings of classes that are not registered among it.
    """
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)


def copied(value: Any) -> Any:
    """Return a value with a copy of every tensor in it, gradients passed on.

    Looks into dataclasses too, as `mapped` does not.
    """
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        return replace(value, **{name: copied(part) for name, part in parts.items()})
    return mapped(_copy, value)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone()
