"""Clusters one block after the other with an estimator of scikit-learn."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from kmeans_sklearn.options import KMeansOptions, MiniBatchKMeansOptions
from palette_core.errors import WeightError
from palette_core.plugins import Clusterer, ClusterProblem
from palette_core.tensors import Codebook

Array = npt.NDArray[np.float64]

_PAIRS = 1 << 22  # distances held at once while vectors are assigned


@final
class SklearnClusterer(Clusterer):
    """k-means by `sklearn.cluster.KMeans` or `sklearn.cluster.MiniBatchKMeans`.

    Blocks are clustered in float64, one after the other, on one thread: scikit-learn adds the
    partial sums of its threads in the order in which they finish, so with more of them the last
    bits would depend on chance.
    """

    def __init__(self, options: KMeansOptions | MiniBatchKMeansOptions) -> None:
        self._options = options

    def fit(self, problem: ClusterProblem) -> Codebook:
        """Cluster every block; shapes and dtypes as `Clusterer.fit` has them.

        Of the problem, ``moments``, ``lut_quantizer`` and ``resolution`` are not used.

        Raises:
            WeightError: a point is NaN or infinite.
        """
        if not bool(torch.isfinite(problem.points).all()):
            raise WeightError("points to be clustered hold NaN or infinity")
        luts, codes = [], []
        with threadpool_limits(limits=1):
            for block, points in enumerate(problem.points):
                # The sum over a vector's elements comes repeated in each of them.
                weights = None if problem.importance is None else problem.importance[block, :, 0]
                seed = np.random.SeedSequence([problem.seed, block]).generate_state(1)
                lut, code = self._fit_block(points, weights, problem.n_entries, int(seed[0]))
                luts.append(lut)
                codes.append(code)
        return Codebook(torch.stack(luts), torch.stack(codes))

    def _fit_block(
        self, points: Tensor, weights: Tensor | None, k: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return entries ``[k, D]`` and codes ``[N]`` of points ``[N, D]``."""
        x = points.to(torch.float64).numpy()
        # Scaling by a power of two is exact, and keeps squares from overflow and underflow.
        exponent = int(np.frexp(np.abs(x).max())[1])
        x = np.ldexp(x, -exponent)
        entries = self._entries(*_counted(x, weights, k, points.dtype), k, seed)
        dtype = torch.promote_types(points.dtype, torch.float32)
        lut = torch.from_numpy(np.ldexp(entries, exponent)).to(dtype)
        stored = lut.to(points.dtype).to(torch.float64).numpy()
        return lut, torch.from_numpy(nearest(x, np.ldexp(stored, -exponent)))

    def _entries(self, x: Array, w: Array, k: int, seed: int) -> Array:
        if len(x) <= k:
            return np.concatenate([x, np.repeat(x[-1:], k - len(x), axis=0)])
        options = self._options.model_dump()
        # scikit-learn measures tol against a variance in which points weigh the same.
        options["tol"] *= _variance(x, w) / _variance(x, np.ones(len(x)))
        kind = KMeans if isinstance(self._options, KMeansOptions) else MiniBatchKMeans
        trials = options.pop("n_local_trials", None)
        if trials is not None:
            options["init"] = partial(_seeded, sample_weight=w, n_local_trials=trials)
        estimator = kind(k, random_state=seed, **options)
        with warnings.catch_warnings():
            # Points too close to tell apart leave entries over, which then repeat others.
            warnings.simplefilter("ignore", ConvergenceWarning)
            centers = np.array(estimator.fit(x, sample_weight=w).cluster_centers_, np.float64)
        return _means(x, w, centers)


def _seeded(x: Array, k: int, random_state: Any, **how: Any) -> Array:
    """Return centroids ``[k, D]`` by k-means++, as an estimator calls for them."""
    return np.asarray(kmeans_plusplus(x, k, random_state=random_state, **how)[0])


def _counted(x: Array, weights: Tensor | None, k: int, dtype: torch.dtype) -> tuple[Array, Array]:
    """Return the points that count and their weights.

    Equal points are merged, in ascending order, where there may be too few distinct ones for
    ``k`` entries, and where 16-bit scalars make it pay: of those there are at most 65,536.
    """
    w = np.ones(len(x))
    if weights is not None and bool(weights.any()):
        w = weights.to(torch.float64).numpy()
        x, w = x[w > 0], w[w > 0]
    scalar = x.shape[1] == 1
    if not (scalar and dtype.itemsize == 2) and len(np.unique(x[: 4 * k], axis=0)) > k:
        return x, w
    values, inverse = np.unique(x, axis=None if scalar else 0, return_inverse=True)
    merged = np.bincount(inverse.reshape(-1), weights=w, minlength=len(values))
    return values.reshape(-1, x.shape[1]), merged.astype(np.float64)


def _variance(x: Array, w: Array) -> float:
    deviations = x - np.average(x, axis=0, weights=w)
    return float(np.average(np.square(deviations).mean(axis=1), weights=w))


def _means(x: Array, w: Array, centers: Array) -> Array:
    """Replace centroids by the means of their points; scalar ones are returned sorted.

    A run ends when centroids move little, and mini-batches only average towards the means.
    """
    scalar = x.shape[1] == 1
    if scalar:
        centers = np.sort(centers, axis=0)
    codes = nearest(x, centers)
    total = np.bincount(codes, weights=w, minlength=len(centers))
    used = total > 0
    for axis in range(x.shape[1]):
        sums = np.bincount(codes, weights=w * x[:, axis], minlength=len(centers))
        centers[used, axis] = sums[used] / total[used]
    return np.sort(centers, axis=0) if scalar else centers


def nearest(x: Array, entries: Array) -> npt.NDArray[np.uint8]:
    """Return the index of the nearest entry for every point.

    Args:
        x: ``[N, D]`` points.
        entries: ``[K, D]``, K at most 256; in ascending order where D is 1.
    """
    if x.shape[1] == 1:
        middles = (entries[1:, 0] + entries[:-1, 0]) / 2
        return np.searchsorted(middles, x[:, 0]).astype(np.uint8)
    chunks = torch.split(torch.from_numpy(x), max(1, _PAIRS // len(entries)))
    table = torch.from_numpy(entries)
    # Differences, not the expanded square, which cancels for points far from the origin.
    mode = "donot_use_mm_for_euclid_dist"
    codes = [torch.cdist(chunk, table, compute_mode=mode).argmin(1) for chunk in chunks]
    return torch.cat(codes).to(torch.uint8).numpy()
