"""The catalog of everything that can be picked by name."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from palette_core.errors import MissingBackendError
from palette_core.plugins.backends import ExportBackendEntry
from palette_core.plugins.clusterers import ClustererEntry
from palette_core.plugins.discovery import find_plugins
from palette_core.plugins.granularities import GranularityEntry
from palette_core.plugins.kinds import (
    CLUSTERER,
    EXPORT_BACKEND,
    GRANULARITY,
    KINDS,
    LUT_QUANTIZER,
    OPERATION,
    SENSITIVITY_METRIC,
    TRAINING_STRATEGY,
    EntryT,
    PluginKind,
)
from palette_core.plugins.lut_quantizers import LutQuantizerEntry
from palette_core.plugins.metrics import SensitivityMetricEntry
from palette_core.plugins.operations import OperationEntry
from palette_core.plugins.registries import CORE, Blocked, Quarantined, Registry
from palette_core.plugins.training import TrainingStrategyEntry


@dataclass(frozen=True)
class Catalog:
    """Every registered plug-in: ``catalog[kind]`` is the registry of a kind of `KINDS`.

    The kinds that are asked for most have a property each, which says the same in fewer words.
    """

    by_kind: Mapping[PluginKind[Any], Registry[Any]]
    quarantined: tuple[Quarantined, ...] = ()
    blocked: tuple[Blocked, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a name: plug-ins are those of the process that loads."""
        return get_catalog, ()

    def __getitem__(self, kind: PluginKind[EntryT]) -> Registry[EntryT]:
        return self.by_kind[kind]

    def registries(self) -> tuple[Registry[Any], ...]:
        """Return one registry per kind, in the order of `KINDS`."""
        return tuple(self[kind] for kind in KINDS)

    @property
    def clusterers(self) -> Registry[ClustererEntry]:
        """The clustering algorithms."""
        return self[CLUSTERER]

    @property
    def granularities(self) -> Registry[GranularityEntry]:
        """The granularities."""
        return self[GRANULARITY]

    @property
    def lut_quantizers(self) -> Registry[LutQuantizerEntry]:
        """The LUT quantizers."""
        return self[LUT_QUANTIZER]

    @property
    def training_strategies(self) -> Registry[TrainingStrategyEntry]:
        """The training strategies."""
        return self[TRAINING_STRATEGY]

    @property
    def export_backends(self) -> Registry[ExportBackendEntry]:
        """The export backends."""
        return self[EXPORT_BACKEND]

    @property
    def sensitivity_metrics(self) -> Registry[SensitivityMetricEntry]:
        """The sensitivity metrics."""
        return self[SENSITIVITY_METRIC]

    @property
    def operations(self) -> Registry[OperationEntry]:
        """The operations."""
        return self[OPERATION]

    def backend(self, name: str) -> ExportBackendEntry:
        """Return the export backend ``name``.

        Raises:
            MissingBackendError: it is one of ours, but its distribution is not installed.
            UnknownPluginError: nobody knows it.
        """
        registry, provider = self[EXPORT_BACKEND], _provider(name)
        known = [each.distribution.name for each in self.quarantined]
        known += [each.distribution.name for each in self.blocked]
        if provider and name not in registry.names() and provider not in known:
            raise MissingBackendError(
                f"export backend {name!r} needs the plug-in {provider!r}, which is not installed; "
                f"the page on export says how; installed: {', '.join(registry.names())}",
                name=provider,
            )
        return registry.get(name)


def _provider(backend: str) -> str | None:
    """Return the distribution that the core offers as an extra of the backend's name."""
    for requirement in importlib.metadata.requires(CORE) or ():
        offered = re.fullmatch(rf"({CORE}-[\w-]+) *; *extra *== *['\"](.+)['\"]", requirement)
        if offered and offered[2] == backend:
            return offered[1]
    return None


def discover() -> Catalog:
    """Load every entry point, those of the built-in plug-ins first, and return a fresh catalog."""
    found = find_plugins()
    left_out = tuple(found.quarantined), tuple(found.blocked)
    registries = {kind: Registry(kind, tuple(found.entries[kind]), *left_out) for kind in KINDS}
    return Catalog(registries, *left_out)


@lru_cache(maxsize=1)
def get_catalog() -> Catalog:
    """Return the catalog of this process, discovered on first use."""
    return discover()
