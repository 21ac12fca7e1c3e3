"""Objects that hang in a model deeper than anything that is put back after a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from palette_core._common.pytrees import objects_in
from palette_core.model.contents import CONTAINERS

_MOST_OBJECTS = 4096
_PLAIN = (str, bytes, int, float, complex, type(None), type, nn.Module)


class Deeper:
    """Objects that modules hold in their attributes, in any depth, and what they hold.

    Of their classes, and of the Python modules these are from, only what is there itself, and in
    containers there.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._held: dict[int, tuple[Any, list[Any], int | None]] = {}
        modules = list(modules)
        for item in _shared(modules):
            self._held[id(item)] = (item, _parts(item), None)
        rest = [item for module in modules for item in _below(module)]
        most = len(self._held) + _MOST_OBJECTS
        while rest and len(self._held) < most:
            item = rest.pop()
            if id(item) in self._held or isinstance(item, _PLAIN):
                continue
            parts = _parts(item)
            self._held[id(item)] = (item, parts, _version(item))
            rest += parts

    def is_written(self) -> bool:
        """Return whether any of them holds something else, or a tensor was written to."""
        for item, parts, version in self._held.values():
            if version is not None and _version(item) != version:
                return True
            now = _parts(item)
            if len(now) != len(parts) or any(a is not b for a, b in zip(now, parts, strict=True)):
                return True
        return False


def _below(module: nn.Module) -> Iterator[Any]:
    """Yield what hangs deeper than what is put back."""
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules") or isinstance(value, Tensor):
            continue
        if type(value) in CONTAINERS:
            yield from _parts(value)
        else:
            yield value


def _shared(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """Yield classes, the Python modules these are from, and containers in both."""
    classes = {each for kind in {type(module) for module in modules} for each in kind.__mro__}
    own = [each for each in classes if each.__module__.split(".")[0] not in ("torch", "builtins")]
    files = (sys.modules.get(name) for name in {each.__module__ for each in own})
    for place in (*own, *(file for file in files if file is not None)):
        yield place
        yield from (value for value in vars(place).values() if type(value) in CONTAINERS)


def _parts(item: Any) -> list[Any]:
    if isinstance(item, (type, ModuleType)):
        return [*vars(item).values()]
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, (list, tuple, set, frozenset)):
        return [*item]
    return [] if isinstance(item, Tensor) else list(objects_in(item))


def _version(item: Any) -> int | None:
    return item._version if isinstance(item, Tensor) and not item.is_inference() else None
