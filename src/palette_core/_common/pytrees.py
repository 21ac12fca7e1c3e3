"""Tensors in what models take and return.

They are alone, or in tuples, lists, mappings, dataclasses and classes registered with torch's
trees, in any depth; where nothing is found there, in attributes of other objects.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


def floating(value: Any) -> list[Tensor]:
    """Return the floating tensors of a value, in order; complex ones as pairs of real numbers.

    Objects that are neither containers nor dataclasses, such as a cache among the outputs, count
    where there is nothing else.
    """
    found = [_real(tensor) for tensor in tensors(value) if _is_floating(tensor)]
    return found or [_real(tensor) for tensor in _inside(value, {}) if _is_floating(tensor)]


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a value, in order, those in other objects aside."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        else:
            for item in _items(leaf):
                yield from tensors(item)


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a value with every tensor in it exchanged.

    All else stays as it is, mappings and dataclasses that are not registered among it.
    """
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)


def exchanged(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a value with every tensor exchanged, in dataclasses too, unlike `mapped`."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in _SCALARS:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {
            field.name: exchanged(function, getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        return dataclasses.replace(value, **parts)
    return mapped(function, value)


_SCALARS = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})


def copied(value: Any) -> Any:
    """Return a value with a copy of every tensor in it, gradients passed on."""
    return exchanged(lambda tensor: tensor.clone(), value)


def deep_copy(value: Any) -> Any:
    """Return a copy of a value, of all tensors and objects in it, as ``copy.deepcopy`` makes it.

    Of views only what they show is copied, and nothing remembers how a tensor was computed.

    Raises:
        TypeError: something in it cannot be copied, such as a generator or a lock.
    """
    try:
        with _Copying():
            return copy.deepcopy(value)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise TypeError(f"{said_of(value)} cannot be copied: {error}") from error


def said_of(value: Any) -> str:
    """Return what to call a value in a message: its type, and those of what it holds."""
    held = sorted({type(leaf).__name__ for leaf in tree_leaves(value)} - {type(value).__name__})
    return f"{type(value).__name__} of {', '.join(held)}" if held else type(value).__name__


class _Copying(TorchFunctionMode):
    """Copies tensors that autograd has made, which ``copy.deepcopy`` refuses to."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return memo[id(tensor)]


def _items(leaf: Any) -> Iterator[Any]:
    """Yield what a container holds whose class is not registered with torch's trees."""
    if isinstance(leaf, Mapping):
        yield from leaf.values()
    elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        for field in dataclasses.fields(leaf):
            yield getattr(leaf, field.name, None)


_CALLED = (FunctionType, MethodType, partial)
_CLOSED = (nn.Module, type, ModuleType, FunctionType)  # no values of a run


def _inside(value: Any, seen: dict[int, Any]) -> Iterator[Tensor]:
    """Yield the tensors of a value, those in attributes of any objects included."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in seen:
            seen[id(leaf)] = leaf  # held, so that its id is not given to others
            for item in objects_in(leaf):
                yield from _inside(item, seen)


def objects_in(leaf: Any) -> Iterator[Any]:
    """Yield what an object that is no plain container holds: its items and its attributes."""
    if isinstance(leaf, _CLOSED):
        return
    yield from _items(leaf)
    yield from getattr(leaf, "__dict__", {}).values()
    for cls in type(leaf).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(leaf, name, None)


_NO_TENSORS = (bool, int, float, complex, str, bytes, type(None), Enum)
_PLAIN = (*_NO_TENSORS, torch.dtype, torch.device, torch.Size, nn.Module, type, ModuleType)


def is_closed(value: Any) -> bool:
    """Return whether tensors may be in a value where nothing finds them: in a function, a set."""
    return _has_closed(value, {})


def _has_closed(value: Any, seen: dict[int, Any]) -> bool:
    for leaf in tree_leaves(value):
        if isinstance(leaf, (Tensor, *_PLAIN)) or id(leaf) in seen:
            continue
        seen[id(leaf)] = leaf
        has_parts = isinstance(leaf, Mapping) or hasattr(leaf, "__dict__")
        if not (has_parts or hasattr(leaf, "__slots__")) or isinstance(leaf, _CALLED):
            return True
        if any(_has_closed(part, seen) for part in objects_in(leaf)):
            return True
    return False


def _is_floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
