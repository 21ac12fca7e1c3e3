"""Origins of results, for files: the configuration and the plug-ins that took part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from palette_core.config import KMeansPalettizerConfig
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.kinds import (
    CLUSTERER,
    GRANULARITY,
    LUT_QUANTIZER,
    STORED_FORM,
    TRAINING_STRATEGY,
    PluginKind,
)
from palette_core.plugins.options import without_secrets
from palette_core.storage.origins import Source

Made = tuple[TensorPlan, str, str]
"""A plan, the algorithm that ran (empty for the plan's own), and the stored form."""


def source_of(config: KMeansPalettizerConfig, made: Iterable[Made], catalog: Catalog) -> Source:
    """Return the source of palettes that were made by one configuration."""
    return Source(told(config, catalog), plugins_of(made, catalog))


def plugins_of(made: Iterable[Made], catalog: Catalog) -> dict[str, str]:
    """Return the distributions, with versions, that take part in making palettes, by plug-in."""
    used: dict[str, str] = {}
    for kind, name in dict.fromkeys(each for one in made for each in _named(*one)):
        registry = catalog[kind]
        # A granularity may be the user's own, registered by nobody; see `check_names`.
        if kind is not GRANULARITY or name in registry.names():
            used[f"{kind.slug}:{name}"] = str(registry.find(name).distribution)
    return dict(sorted(used.items()))


def told(config: KMeansPalettizerConfig, catalog: Catalog) -> dict[str, Any]:
    """Return what files tell of a configuration: all but secrets."""
    entries = (item.entry for registry in catalog.registries() for item in registry)
    plain: dict[str, Any] = without_secrets(config.to_dict(), entries)
    return plain


def _named(plan: TensorPlan, algorithm: str, form: str) -> Iterable[tuple[PluginKind[Any], str]]:
    spec = plan.spec
    yield CLUSTERER, algorithm or plan.algorithm
    yield GRANULARITY, spec.granularity.type
    yield TRAINING_STRATEGY, spec.training_strategy
    yield STORED_FORM, form
    if plan.lut_quantizer is not None:
        yield LUT_QUANTIZER, plan.lut_quantizer
