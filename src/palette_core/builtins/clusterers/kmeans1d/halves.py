"""Scalar k-means of float16 and bfloat16 points: at most 65,536 distinct values.

One pass counts bit patterns, the exact problem is solved on those that occur, and a table with
an entry per pattern assigns every point. Entries end on values of the dtype: the best ones near
the optimum, not the optimum rounded; see `rounding`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core._common.threads import map_threads, slices_of
from palette_core.builtins.clusterers.kmeans1d.passes import count_patterns, look_up, weigh_patterns
from palette_core.builtins.clusterers.kmeans1d.rounding import settle
from palette_core.builtins.clusterers.kmeans1d.solver import sums_of
from palette_core.builtins.clusterers.kmeans1d.sorted_fit import centroids, spread, thresholds

_PATTERNS = 1 << 16
# How far an entry is moved at a time to settle on values of the dtype: bfloat16 has large steps.
_REACH = {torch.float16: 2, torch.bfloat16: 8}
_PART = 1 << 21  # points one thread counts or assigns at a time


def fit_halves(points: Tensor, importance: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Cluster each row of ``points`` ``[B, N]``; see `KMeans1d.fit`.

    Returns:
        ``lut`` ``[B, K]`` float32 holding values of the points' dtype; ``codes`` ``[B, N]`` uint8.
    """
    blocks, count = points.shape
    bits = points.contiguous().view(torch.int16).numpy().view(np.uint16)
    weights = None if importance is None else importance.contiguous().numpy()
    lut = np.empty((blocks, k), np.float32)
    codes = np.empty((blocks, count), np.uint8)

    def one(b: int, run: Callable[..., Any] = _in_turn) -> None:
        parts = slices_of(count, _PART)
        counts = _count(bits[b], None if weights is None else weights[b], parts, run)
        lut[b], table = solve_patterns(counts, points.dtype, k)
        run(lambda part: look_up(bits[b, part], table, codes[b, part]), parts)

    if count > _PART:
        for b in range(blocks):
            one(b, map_threads)
    else:
        map_threads(one, range(blocks))
    return torch.from_numpy(lut), torch.from_numpy(codes)


def _in_turn(function: Callable[[Any], Any], items: Any) -> list[Any]:
    return [function(item) for item in items]


def _count(
    bits: NDArray[np.uint16],
    weights: NDArray[np.float32] | None,
    parts: list[slice],
    run: Callable[..., Any],
) -> NDArray[Any]:
    """Return how much each bit pattern weighs; plain counts where no point has weight."""
    if weights is not None:

        def weigh(part: slice) -> NDArray[np.float64]:
            out = np.zeros(_PATTERNS)
            weigh_patterns(bits[part], weights[part], out)
            return out

        total: NDArray[Any] = np.sum(run(weigh, parts), axis=0)
        if total.any():
            return total

    def tally(part: slice) -> NDArray[np.int64]:
        out = np.zeros(_PATTERNS, np.int64)
        count_patterns(bits[part], out)
        return out

    counts: NDArray[Any] = np.sum(run(tally, parts), axis=0)
    return counts


@lru_cache(maxsize=2)
def _ordered(dtype: torch.dtype) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the finite patterns but −0, ascending by value, and their values."""
    patterns = torch.arange(_PATTERNS, dtype=torch.int32).to(torch.int16)
    values = patterns.view(dtype).double().numpy()
    keep = np.isfinite(values)
    keep[_PATTERNS // 2] = False
    order = np.nonzero(keep)[0]
    order = order[np.argsort(values[order], kind="stable")]
    return order, values[order]


def solve_patterns(
    counts: NDArray[Any], dtype: torch.dtype, k: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Solve one block given how much each of the 65,536 bit patterns of ``dtype`` weighs.

    Returns:
        ``lut`` ``[K]`` of values of ``dtype``; ``table`` ``[65536]``, the code of each pattern.
    """
    order, values = _ordered(dtype)
    ranked = counts[order].astype(np.float64)
    zero = int(np.searchsorted(values, 0.0))
    ranked[zero] += counts[_PATTERNS // 2]
    seen = np.nonzero(ranked)[0]
    w, x = ranked[seen], values[seen]
    best = centroids(w, x, min(k, x.size))
    at = np.searchsorted(values, torch.from_numpy(best).to(dtype).double().numpy())
    if x.size > k:
        settle(sums_of(w, x), x, values, at, _REACH[dtype])
    lut = spread(values[at], k).astype(np.float32)
    ends = np.searchsorted(values, thresholds(lut.astype(np.float64)), side="right")
    table = np.zeros(_PATTERNS, np.uint8)
    table[order] = np.repeat(np.arange(k), np.diff(ends, prepend=0, append=values.size))
    table[_PATTERNS // 2] = table[0]
    return lut, table
