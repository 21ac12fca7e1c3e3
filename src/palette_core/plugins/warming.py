"""The warm-up of clusterers, beside the loading and tracing of a model."""

from __future__ import annotations

from collections.abc import Callable

from palette_core.errors import ClusteringError
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.clusterers import ClustererEntry
from palette_core.plugins.guards import guarded
from palette_core.plugins.registries import CORE


def warm_up(catalog: Catalog, used: Callable[[ClustererEntry], bool]) -> None:
    """Let the clusterers that will be used begin what has to be done before they are called.

    Raises:
        ClusteringError: one failed.
    """
    for item in catalog.clusterers:
        if item.entry.warm_up is not None and used(item.entry):
            ours = item.distribution.name == CORE
            guarded(f"the warm-up of {item}", ClusteringError, item.entry.warm_up, is_ours=ours)
