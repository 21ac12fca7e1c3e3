"""Steps of clustering a block between passes over its points: small numba kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from palette_core._common.kernels import short_kernel
from palette_core.builtins.clusterers.kmeans1d.passes import cells_of

_HIDDEN = 1.0 / 64  # of λ: what a closed cell's points may cost about their mean
ROUNDS = 2


@short_kernel
def middle_of(cells: Any) -> float:
    """Return the mean of the points inside the grid, as a float32."""
    weight, moment = 0.0, 0.0
    for c in range(1, cells.shape[0] - 1):
        weight += cells[c, 0]
        moment += cells[c, 1]
    return float(np.float32(moment / weight)) if weight > 0.0 else 0.0


@short_kernel
def open_more(
    w: Any, cell: Any, cuts: Any, charge: float, width: float, rounds: int, is_open: Any
) -> int:
    """Open the cells in which the best partition of atoms may still be wrong.

    First those whose points may cost enough for an entry of their own; where there are none, for
    a few rounds, those on either side of a boundary, and their neighbours.

    Args:
        w: weights of atoms.
        cell: their cells, −1 for points of open ones.
        cuts: between atoms, of the best partition.
        charge: its λ.
        width: of a cell, at most.
        rounds: how often cells at boundaries were opened.
        is_open: which cells stand as their points, updated.

    Returns:
        the rounds now, or −1 where nothing was opened.
    """
    found = False
    for i in range(w.size):
        if cell[i] >= 0 and 0.25 * w[i] * width**2 > _HIDDEN * charge:
            is_open[cell[i]] = 1
            found = True
    if found:
        return rounds
    if rounds == ROUNDS:
        return -1
    for i in range(1, cuts.size - 1):
        for at in range(cuts[i] - 1, cuts[i] + 1):
            # The ends are open from the start, if anything is in them.
            if cell[at] >= 0:
                found = True
                for c in range(max(1, cell[at] - 1), min(is_open.size - 1, cell[at] + 2)):
                    is_open[c] = 1
    return rounds + 1 if found else -1


@short_kernel
def set_limits(lut: Any, low: Any, per_unit: Any, limits: Any, base: Any) -> None:
    """Find what tells points of one entry from those of the next.

    Args:
        lut: ``[K]`` ascending float32 entries, spare ones repeating the last.
        low: see `cells_of`.
        per_unit: see `cells_of`.
        limits: ``[K]`` float32 out: the largest value at or below each midpoint of neighbouring
            entries; infinity for spare ones and for the last.
        base: ``[cells + 1]`` uint8 out: how many finite limits lie in lower cells.
    """
    last = lut.size - 1
    for i in range(lut.size):
        limits[i] = np.inf
        if i < last and lut[i + 1] > lut[i]:
            middle = 0.5 * np.float64(lut[i]) + 0.5 * np.float64(lut[i + 1])
            limits[i] = np.float32(middle)
            if np.float64(limits[i]) > middle:
                limits[i] = np.nextafter(limits[i], np.float32(-np.inf))
    at = np.empty(lut.size, np.int32)
    cells_of(limits, low, per_unit, base.size - 2, at)
    below = 0
    for c in range(base.size):
        while limits[below] < np.inf and at[below] < c:
            below += 1
        base[c] = below
