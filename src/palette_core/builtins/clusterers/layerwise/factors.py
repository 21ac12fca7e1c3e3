"""Factors of the matrices of H, by which the error of a column is fed back to those after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palette_core._common.threads import map_threads, spread, thread_count
from palette_core.builtins.clusterers.layerwise import products

Array = NDArray[Any]
_ROWS = 512  # of a triangle that are worth a thread: fewer are done before it has begun


@dataclass(frozen=True)
class Factors:
    """H = (I + U) diag(d) (I + U)ᵀ, columns in the order in which they are to be done.

    Attributes:
        order: ``[G, C]`` int32.
        feedback: ``[G, C, C]`` float32, U + Uᵀ.
        pivot: ``[G, C]`` float32, d.
        exact: nothing had to be added to the diagonal of H.
    """

    order: Array
    feedback: Array
    pivot: Array
    exact: bool


def factorize(h: Array, *, act_order: bool) -> Factors:
    """Factorize each matrix, columns with the largest inputs first if ``act_order``."""
    groups, columns, _ = h.shape
    order = np.empty((groups, columns), np.int32)
    feedback = np.empty(h.shape, np.float32)
    pivot = np.empty((groups, columns), np.float32)

    def one(g: int) -> bool:
        diagonal = h[g].diagonal()
        order[g] = np.argsort(-diagonal, kind="stable") if act_order else np.arange(columns)
        # The factor of the reversed matrix is the upper triangular one of the matrix, reversed.
        back = np.ascontiguousarray(order[g][::-1])
        a, ridge = np.empty((columns, columns)), 0.0
        while True:
            _for_rows(0, columns, partial(products.pick, h[g], back, ridge, a))
            if _cholesky(a):
                break
            ridge = 10.0 * ridge or 1e-6 * float(diagonal.mean(dtype=np.float64))
        _for_rows(0, columns, partial(products.turn_back, a, feedback[g], pivot[g]))
        return ridge == 0.0

    return Factors(order, feedback, pivot, all(map_threads(one, range(groups))))


def _cholesky(a: Array) -> bool:
    """Do as `products.factorize` does, on threads; the result is the same."""
    n = a.shape[0]
    for low in range(0, n, products.PANEL):
        high = min(n, low + products.PANEL)
        lines = np.empty((1, high - low, n - high))
        if not products.factor_panel(a, low, high, lines):
            return False
        _for_rows(high, n, partial(products.subtract_panel, a, low, high, lines))
    return True


def _for_rows(top: int, bottom: int, work: Callable[[int, int], object]) -> None:
    """Call ``work(top, bottom)`` for some rows of a triangle at a time, the longest ones first."""
    rows = bottom - top
    step = max(1, rows if rows <= _ROWS else -(-rows // (4 * thread_count())))
    pieces = [(at, min(bottom, at + step)) for at in range(top, bottom, step)]
    spread(lambda piece: work(*piece), pieces[::-1])
