"""Memory that kernels work in, kept from one call to the next.

The system hands out large pieces page by page, as they are first written to, which takes as long
as a kernel takes for a small weight.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class _Kept(threading.local):
    keepers = 0

    def __init__(self) -> None:
        self.pieces: dict[str, NDArray[np.uint8]] = {}


_kept = _Kept()


@contextlib.contextmanager
def scratch_kept() -> Iterator[None]:
    """Keep what `scratch` hands out on this thread, until the outermost such block is left."""
    keep_scratch()
    try:
        yield
    finally:
        let_scratch_go()


def keep_scratch() -> None:
    """Keep what `scratch` hands out on this thread, until it is let go or the thread ends."""
    _kept.keepers += 1


def let_scratch_go() -> None:
    """Undo one `keep_scratch`; with the last one what was kept is freed."""
    _kept.keepers -= 1
    if not _kept.keepers:
        _kept.pieces.clear()


def scratch(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array with anything in it, the caller's until the next call with this name.

    Args:
        name: of the purpose; pieces are kept by it.
        shape: of the array.
        dtype: of the array.
    """
    if not _kept.keepers:
        return np.empty(shape, dtype)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    piece = _kept.pieces.get(name)
    if piece is None or piece.size < size:
        _kept.pieces.pop(name, None)  # before there is another
        piece = _kept.pieces[name] = np.empty(size, np.uint8)
    return piece[:size].view(dtype).reshape(shape)
