"""``kmeans1d``: the exact optimum of weighted k-means on the line, block by block."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from palette_core.builtins.clusterers.kmeans1d.finite import check_finite, ends_of
from palette_core.builtins.clusterers.kmeans1d.options import KMeans1dOptions
from palette_core.errors import ClusteringError
from palette_core.plugins import Clusterer, ClusterProblem
from palette_core.tensors import Codebook

__all__ = ["KMeans1d"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@final
class KMeans1d(Clusterer):
    """Clusters the scalars of each block so that Σ w (x − c)² is least.

    The same result bit for bit whatever the number of threads and whatever other blocks are in
    the problem.
    """

    def __init__(self, options: KMeans1dOptions | None = None) -> None:
        self.options = KMeans1dOptions() if options is None else options

    def fit(self, problem: ClusterProblem) -> Codebook:
        """Cluster every block.

        Returns:
            ``lut`` ``[B, K, 1]``, float64 for float64 points and float32 for all others, holding
            values of the points' dtype in ascending order, spare ones repeating the last;
            ``codes`` ``[B, N]`` uint8: the nearest entry, the lower one of two equally near.

        Raises:
            ClusteringError: points that are no scalars, of an unknown dtype, or none at all; K
                outside 1 … 256; importance that is of another shape, negative or not finite.
            WeightError: points that are NaN or infinite.
        """
        _check(problem)
        points = problem.points.squeeze(-1)
        importance = None if problem.importance is None else problem.importance.squeeze(-1)
        resolution = None if self.options.exact else problem.resolution
        fit = _fit_cpu if points.device.type == "cpu" else _fit_elsewhere
        lut, codes = fit(points, importance, problem.n_entries, resolution)
        return Codebook(lut.unsqueeze(-1), codes)


def _fit_cpu(
    points: Tensor, importance: Tensor | None, k: int, resolution: int | None
) -> tuple[Tensor, Tensor]:
    importance = None if importance is None else importance.to("cpu", torch.float32)
    if points.dtype in (torch.float16, torch.bfloat16):
        from palette_core.builtins.clusterers.kmeans1d.halves import fit_halves

        return fit_halves(points, importance, k)
    if points.dtype == torch.float32:
        from palette_core.builtins.clusterers.kmeans1d.floats import fit_floats

        return fit_floats(points, importance, k, resolution)
    from palette_core.builtins.clusterers.kmeans1d.sorted_fit import fit_sorted

    return fit_sorted(points, importance, k)


def _fit_elsewhere(
    points: Tensor, importance: Tensor | None, k: int, resolution: int | None
) -> tuple[Tensor, Tensor]:
    from palette_core.builtins.clusterers.kmeans1d.torch_engine import fit_torch

    return fit_torch(points, importance, k, resolution)


def _check(problem: ClusterProblem) -> None:
    points, importance = problem.points, problem.importance
    if points.dim() != 3 or points.shape[-1] != 1:
        raise ClusteringError(
            f"kmeans1d got points of shape {tuple(points.shape)}, expected [B, N, 1]; for "
            "cluster_dim > 1 use kmeans_vector"
        )
    if points.numel() == 0:
        raise ClusteringError(
            f"kmeans1d got points of shape {tuple(points.shape)}: there is nothing to cluster"
        )
    if points.dtype not in _DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
        raise ClusteringError(f"kmeans1d got points of {points.dtype}, expected one of {names}")
    if not 1 <= problem.n_entries <= 256:
        raise ClusteringError(f"kmeans1d got n_entries={problem.n_entries}, expected 1 to 256")
    # In host memory float32 points are looked at where they are clustered.
    if points.dtype != torch.float32 or points.device.type != "cpu":
        check_finite(points)
    if importance is None:
        return
    if importance.shape != points.shape:
        raise ClusteringError(
            f"kmeans1d got importance of shape {tuple(importance.shape)} for points of shape "
            f"{tuple(points.shape)}, expected the same"
        )
    least, most = ends_of(importance)
    if not (least >= 0.0 and most < float("inf")):
        raise ClusteringError(
            f"kmeans1d got importance from {least} to {most}, expected finite values of at least 0"
        )
