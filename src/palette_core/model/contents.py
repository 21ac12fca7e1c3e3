"""Contents of the containers among a module's attributes, to be put back."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, final

from torch import nn

CONTAINERS = frozenset({list, dict, set, OrderedDict})  # registries of parts and hooks among them


@final
class Contents:
    """Contents of the lists, dictionaries and sets that are attributes of a module."""

    def __init__(self, module: nn.Module) -> None:
        found = [value for value in vars(module).values() if type(value) in CONTAINERS]
        self._empty = [each for each in found if not each]  # most, and these need no copy
        self._filled = [(each, each.copy()) for each in found if each]

    def put_back(self, *, where_unequal: bool = False) -> None:
        """Give every container back what it held.

        Args:
            where_unequal: leave alone those that hold equal objects.
        """
        for container in self._empty:
            container.clear()
        for container, content in self._filled:
            if not (where_unequal and same(container, content)):
                refill(container, content)

    def changes(self) -> list[Callable[[], object]]:
        """Return what makes the containers that hold something else as they are now."""
        changed = [each for each in self._empty if each]
        changed += [each for each, content in self._filled if not same(each, content)]
        return [functools.partial(refill, each, each.copy()) for each in changed]


@final
class Glance:
    """Attributes and contents, compared at once, as they mostly are what they were.

    Args:
        attributes: of each module, and a copy of them.
        contents: of each module.
    """

    def __init__(self, attributes: Iterable[tuple[Any, Any]], contents: Iterable[Contents]) -> None:
        contents = list(contents)
        self._empty = [each for one in contents for each in one._empty]
        pairs = [*attributes, *(pair for one in contents for pair in one._filled)]
        self._now, self._then = [now for now, _ in pairs], [then for _, then in pairs]

    def is_same(self) -> bool:
        """Return whether nothing has changed; False where there is no telling."""
        return not any(self._empty) and same(self._now, self._then)


def refill(container: Any, content: Any) -> None:
    """Give a list, dictionary or set what it is to hold."""
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)


def same(a: Any, b: Any) -> bool:
    """Return whether two containers hold the same objects, or at least equal ones."""
    try:
        return bool(a == b)  # what is identical is not compared
    except Exception:
        return False  # of tensors and arrays there is no telling
