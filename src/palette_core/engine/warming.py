"""The warm-up of what a config asks for, beside the loading and tracing of a model."""

from __future__ import annotations

from palette_core.config import KMeansPalettizerConfig
from palette_core.config.spec import PalettizationSpec
from palette_core.plugins import ClustererEntry
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.warming import warm_up


def warm_up_for(config: KMeansPalettizerConfig, catalog: Catalog) -> None:
    """Let the algorithms that a config names, or implies, begin what takes them long.

    Raises:
        ClusteringError: one failed.
    """
    modules = (
        config.global_config,
        *config.module_type_configs.values(),
        *config.module_name_configs.values(),
    )
    specs = [spec for module in modules for spec in module.specs() if spec is not None]
    warm_up(catalog, lambda entry: any(_may_take(entry, spec) for spec in specs))


def _may_take(entry: ClustererEntry, spec: PalettizationSpec) -> bool:
    if spec.algorithm is not None:
        return spec.algorithm == entry.name
    return entry.default_for_vectors if spec.cluster_dim > 1 else entry.default_for_scalars
