"""Operations that runs which wait leave to the thread that lets them run.

Each thread has a heap of its own, whose free memory no other thread gets: where every run computes
for itself, each finds new pages for what it makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
from torch import Tensor, nn

_LARGE = 1 << 18  # bytes; below them changing threads takes longer than it saves
_PLAIN = (Tensor, nn.Parameter)
_OF_TORCH = ("torch.functional", "torch.nn.functional")
_IN_C = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType)
_VIEWS = frozenset(
    {
        *("chunk", "dim", "expand", "movedim", "narrow", "permute", "select", "size", "split"),
        *("squeeze", "stride", "transpose", "unbind", "unflatten", "unsqueeze", "view"),
    }
)


def is_worth_it(
    func: Any, types: Iterable[type], args: Iterable[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Return whether a function of torch itself computes something large from plain tensors."""
    if isinstance(func, _IN_C):
        if func.__name__ in _VIEWS:
            return False
    elif getattr(func, "__module__", None) not in _OF_TORCH:
        return False
    if not all(each in _PLAIN for each in types):
        return False
    large = False
    for tensor in _tensors((*args, *kwargs.values())):
        if type(tensor) not in _PLAIN or not tensor.is_cpu or tensor.layout is not torch.strided:
            return False
        large = large or tensor.nbytes >= _LARGE
    return large


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (tuple, list):
            yield from _tensors(value)
