"""Registers the algorithms; scikit-learn is imported when one is picked, not before."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kmeans_sklearn.options import KMeansOptions, MiniBatchKMeansOptions
from palette_core.plugins import Clusterer, ClustererEntry, hookimpl

if TYPE_CHECKING:
    from palette_core.plugins import VectorKMeansConfig


def _make(options: KMeansOptions | MiniBatchKMeansOptions) -> Clusterer:
    from kmeans_sklearn.clusterer import SklearnClusterer

    return SklearnClusterer(options)


def _options_of(settings: VectorKMeansConfig) -> dict[str, Any]:
    return settings.model_dump()


@hookimpl
def palette_core_clusterers() -> list[ClustererEntry]:
    """Full-batch and mini-batch k-means."""
    text = "k-means of scikit-learn for scalars and vectors, weighted or not"
    entry = partial(
        ClustererEntry, interface=1, factory=_make, supports_vector=True, supports_importance=True
    )
    return [
        entry(
            name="sklearn_kmeans",
            summary=text,
            options=KMeansOptions,
            vector_options=_options_of,
        ),
        entry(
            name="sklearn_minibatch", summary=f"mini-batch {text}", options=MiniBatchKMeansOptions
        ),
    ]
