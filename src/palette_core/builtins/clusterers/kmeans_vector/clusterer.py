"""``kmeans_vector``: k-means of vectors, seeded by k-means++ and refined by Lloyd's iteration."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palette_core.builtins.clusterers.kmeans_vector.options import KMeansVectorOptions
from palette_core.errors import ClusteringError, WeightError
from palette_core.plugins import Clusterer, ClusterProblem
from palette_core.tensors import Codebook, metric, tidy_entries

__all__ = ["KMeansVector", "KMeansVectorOptions"]


@final
class KMeansVector(Clusterer):
    """Clusters the vectors of each block so that Σ w (x − c)² is small.

    Importance counts elementwise: a distance is Σ_d w_d (x_d − c_d)², and a centroid the
    weighted mean of its points, coordinate by coordinate. Importance that is the same for all
    coordinates of a point is the usual weight per point.

    1. No more distinct points than entries: they are the entries, exactly.
    2. Otherwise a sample that is sure to hold far-away points (a lightweight coreset) is seeded
       by greedy k-means++ and refined, several times over; the best goes on.
    3. Lloyd's iteration on the whole block until the cost stops falling. An entry without
       points moves to a worst-served point.

    On the CPU the result is the same, bit for bit, whatever the number of threads and whatever
    other blocks are in the problem; global random states are not touched.
    """

    def __init__(self, options: KMeansVectorOptions | None = None) -> None:
        self.options = KMeansVectorOptions() if options is None else options

    def fit(self, problem: ClusterProblem) -> Codebook:
        """Cluster every block.

        Returns:
            ``lut`` ``[B, K, D]``, float64 for float64 points and float32 for all others, entries
            ordered by their first coordinate (then the second, …), spare ones repeating the
            last; ``codes`` ``[B, N]`` uint8, nearest under the LUT as cast to the points' dtype.

        Raises:
            ClusteringError: shapes that do not fit, K outside 1 … 256, importance that is
                negative or not finite.
            WeightError: points that are NaN or infinite.
        """
        _check(problem)
        if problem.points.device.type == "cpu":
            return self._fit_cpu(problem)
        return fit_in_torch(problem, self.options)

    def _fit_cpu(self, problem: ClusterProblem) -> Codebook:
        from palette_core.builtins.clusterers.kmeans_vector import cpu_engine as cpu
        from palette_core.tensors.assignment.blocks import make_blocks

        blocks = make_blocks(problem.points, problem.importance)
        fitted = cpu.fit_blocks(blocks, problem.n_entries, problem.seed, self.options)
        tables = [table for table, _ in fitted]
        blocks = make_blocks(problem.points, metric(problem.importance))
        cast = [_cast(table, problem.points.dtype) for table in tables]
        codes = cpu.assign_blocks(blocks, cast, [guess for _, guess in fitted])
        entries = np.zeros((len(blocks), problem.n_entries, problem.points.shape[2]))
        for entry, table in zip(entries, tables, strict=True):
            entry[: table.shape[0]] = table
        return _codebook(torch.from_numpy(entries), torch.from_numpy(np.stack(codes)), problem)


def fit_in_torch(problem: ClusterProblem, options: KMeansVectorOptions) -> Codebook:
    """Cluster where the points are, by torch alone; see `KMeansVector.fit`."""
    from palette_core.builtins.clusterers.kmeans_vector import torch_engine as engine
    from palette_core.tensors.assignment import device

    points, importance = problem.points.detach(), problem.importance
    tables = engine.fit_tables(points, importance, problem.n_entries, problem.seed, options)
    cast = tables.to(points.dtype).double()
    codes = device.assign_and_sum(points, metric(importance), cast)[0]
    return _codebook(tables, codes, problem)


def _codebook(entries: Tensor, codes: Tensor, problem: ClusterProblem) -> Codebook:
    dtype = torch.float64 if problem.points.dtype is torch.float64 else torch.float32
    lut, _, codes = tidy_entries(entries.to(dtype), codes)
    return Codebook(lut, codes)


def _cast(table: NDArray[Any], dtype: torch.dtype) -> NDArray[Any]:
    """Return the entries as they will decode in ``dtype``, in float64."""
    out: NDArray[Any] = torch.from_numpy(table).to(dtype).double().numpy()
    return out


def _check(problem: ClusterProblem) -> None:
    points, importance = problem.points, problem.importance
    if points.ndim != 3 or not points.is_floating_point() or points.numel() == 0:
        raise ClusteringError(
            f"kmeans_vector: points must be non-empty floating [B, N, D], got {points.dtype} of "
            f"shape {tuple(points.shape)}"
        )
    if not 1 <= problem.n_entries <= 256:
        raise ClusteringError(
            f"kmeans_vector: n_entries must be 1 to 256 (codes are uint8), got {problem.n_entries}"
        )
    if not all(bool(end.isfinite()) for end in torch.aminmax(points)):
        raise WeightError("kmeans_vector: points are NaN or infinite; all must be finite")
    if importance is None:
        return
    if importance.shape != points.shape:
        raise ClusteringError(
            f"kmeans_vector: importance of shape {tuple(importance.shape)} must have the shape "
            f"{tuple(points.shape)} of the points"
        )
    if not bool((importance.isfinite() & (importance >= 0)).all()):
        raise ClusteringError("kmeans_vector: importance must be finite and not negative")
