"""Scalar k-means by sorting: every distinct value of a block is an atom.

For float64 points, and wherever speed does not matter.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core.builtins.clusterers.kmeans1d.costs import segment_means
from palette_core.builtins.clusterers.kmeans1d.solver import Floats, solve_atoms


def fit_sorted(points: Tensor, importance: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Cluster each row of ``points`` ``[B, N]``; see `KMeans1d.fit`.

    Returns:
        ``lut`` ``[B, K]`` float64 for float64 points, else float32; ``codes`` ``[B, N]`` uint8.
    """
    blocks, count = points.shape
    wide = torch.float64 if points.dtype == torch.float64 else torch.float32
    lut = torch.empty((blocks, k), dtype=wide)
    codes = np.empty((blocks, count), np.uint8)
    for b in range(blocks):
        values = points[b].to(torch.float64).numpy()
        weights = None if importance is None else importance[b].to("cpu", torch.float64).numpy()
        x, w = distinct(values, weights)
        entries = torch.from_numpy(centroids(w, x, k)).to(points.dtype)
        lut[b] = entries.to(wide)
        codes[b] = np.searchsorted(thresholds(lut[b].double().numpy()), values, side="left")
    return lut, torch.from_numpy(codes)


def distinct(values: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    """Return the ascending distinct values that count, and their summed weights."""
    if weights is None or not weights.any():
        x, repeats = np.unique(values, return_counts=True)
        return x, repeats.astype(np.float64)
    x, where = np.unique(values, return_inverse=True)
    w = np.bincount(where, weights, minlength=x.size)
    return x[w > 0], w[w > 0].astype(np.float64)


def centroids(w: Floats, x: Floats, k: int) -> Floats:
    """Return the ``[k]`` ascending means of the best clusters, spare ones repeating the last."""
    unit, centred = centre(w, x)
    cuts = solve_atoms(w, centred, k).cuts
    return spread(segment_means(w, x / unit, cuts) * unit, k)


def centre(w: Floats, x: Floats) -> tuple[float, Floats]:
    """Scale atoms by a power of two to magnitude 1, and shift them to their middle if exact."""
    unit = float(np.ldexp(1.0, int(np.frexp(np.abs(x).max())[1])))
    unit = unit if 0.0 < unit < np.inf else 1.0
    x = x / unit
    about = x[np.searchsorted(np.cumsum(w), 0.5 * w.sum())]
    moved = x - about
    exact = bool(((moved + about == x) & (x - moved == about)).all())
    return unit, moved if exact and bool((np.diff(moved) > 0.0).all()) else x


def spread(entries: Floats, k: int) -> Floats:
    """Pad ``entries`` to k by repeating the last."""
    if entries.size == k:
        return entries
    return np.concatenate([entries, np.full(k - entries.size, entries[-1])])


def thresholds(entries: NDArray[np.float64]) -> Floats:
    """Return the midpoints of neighbouring entries; spare entries are out of reach.

    A point at or below threshold k and above all before it has entry k.
    """
    out = 0.5 * entries[:-1] + 0.5 * entries[1:]
    return np.where(entries[1:] > entries[:-1], out, np.inf)
