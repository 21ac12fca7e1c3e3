"""The sweep of `_scale` for tables on the CPU, table by table."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import kernel

_EQUAL = 1e-13  # relative rounding of the running sums


@kernel
def sweep(entries: Any, ladder: Any, up: int, down: int, full: Any) -> Any:
    """Return the best scale of each table; see `_scale.best_scale`.

    Args:
        entries: ``[B, M]`` float64.
        ladder: ``[L]`` float64, ascending from 0.
        up: steps that positive entries can climb.
        down: steps that negative entries can climb.
        full: ``[B]`` float64, the place of 1/scale before which the sweep has to end.
    """
    blocks, count = entries.shape
    most = max(up, down)
    place = np.empty(count * most)
    product = np.empty(count * most)
    square = np.empty(count * most)
    out = np.zeros(blocks)
    for b in range(blocks):
        found = 0
        for m in range(count):
            size = abs(entries[b, m])
            if size == 0:
                continue
            for step in range(up if entries[b, m] >= 0 else down):
                low, high = ladder[step], ladder[step + 1]
                at = (low + high) / 2 / size
                if at >= full[b]:
                    break  # the ladder ascends, so do the places
                place[found] = at
                product[found] = size * (high - low)
                square[found] = high * high - low * low
                found += 1
        order = np.argsort(place[:found])
        out[b] = _best(order, product, square)
    return out


@kernel
def _best(order: Any, product: Any, square: Any) -> float:
    """Return Σ product / Σ square where the gain is largest; the last of equals, 0 for none."""
    highest = -1.0
    products = squares = 0.0
    for i in order:
        products += product[i]
        squares += square[i]
        if squares > 0:
            highest = max(highest, products * products / squares)
    products = squares = scale = 0.0
    for i in order:
        products += product[i]
        squares += square[i]
        if squares > 0 and products * products / squares >= highest * (1 - _EQUAL):
            scale = products / squares
    return scale
