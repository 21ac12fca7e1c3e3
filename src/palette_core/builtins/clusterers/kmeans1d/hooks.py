"""Registers the exact k-means of scalars."""

from __future__ import annotations

from typing import Any

from palette_core.builtins.clusterers.kmeans1d.options import KMeans1dOptions
from palette_core.plugins import INTERFACE_VERSION, Clusterer, ClustererEntry, hookimpl


def _kmeans1d(options: Any) -> Clusterer:
    from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d

    return KMeans1d(options)


def _warm_up() -> None:
    from palette_core.builtins.clusterers.kmeans1d.warm import warm_up_beside

    warm_up_beside()


@hookimpl
def palette_core_clusterers() -> list[ClustererEntry]:
    """Weighted k-means on the line."""
    return [
        ClustererEntry(
            name="kmeans1d",
            summary="weighted 1-D k-means: the optimum, or within 0.1 % of it in fast mode",
            interface=INTERFACE_VERSION,
            options=KMeans1dOptions,
            factory=_kmeans1d,
            default_for_scalars=True,
            supports_importance=True,
            supports_cuda=True,
            thread_safe=True,
            warm_up=_warm_up,
        ),
    ]
