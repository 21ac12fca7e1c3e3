"""Registers the k-means of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from palette_core.builtins.clusterers.kmeans_vector.options import KMeansVectorOptions
from palette_core.plugins import INTERFACE_VERSION, Clusterer, ClustererEntry, hookimpl

if TYPE_CHECKING:
    from palette_core.plugins import VectorKMeansConfig


def _kmeans_vector(options: Any) -> Clusterer:
    from palette_core.builtins.clusterers.kmeans_vector.clusterer import KMeansVector

    return KMeansVector(options)


def _options_of(settings: VectorKMeansConfig) -> dict[str, Any]:
    return {
        "trials": settings.n_local_trials,
        "restarts": settings.n_init,
        "max_iter": settings.max_iter,
        "tol": settings.tol,
    }


@hookimpl
def palette_core_clusterers() -> list[ClustererEntry]:
    """K-means of vectors."""
    return [
        ClustererEntry(
            name="kmeans_vector",
            summary="batched Lloyd iterations from greedy k-means++ seeds",
            interface=INTERFACE_VERSION,
            options=KMeansVectorOptions,
            factory=_kmeans_vector,
            vector_options=_options_of,
            supports_vector=True,
            default_for_vectors=True,
            supports_importance=True,
            supports_vector_importance=True,
            supports_cuda=True,
            thread_safe=True,
        ),
    ]
