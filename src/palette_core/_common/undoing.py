"""Put things back on the way out, all of them, also when an interrupt comes in the middle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


@contextlib.contextmanager
def undone(items: list[_T], undo: Callable[[_T], object]) -> Iterator[None]:
    """Call ``undo`` with each of ``items`` on the way out, last first, and empty the list.

    Ctrl-C may arrive while things are put back, too: then the rest follows before it goes on.

    Args:
        items: what is to be put back; may grow inside of the block.
        undo: does no harm when it is called twice with the last item.
    """
    try:
        try:
            yield
        finally:
            _undo_all(items, undo)
    finally:
        _undo_all(items, undo)  # what an interrupt has left


def _undo_all(items: list[_T], undo: Callable[[_T], object]) -> None:
    while items:
        undo(items[-1])
        items.pop()
