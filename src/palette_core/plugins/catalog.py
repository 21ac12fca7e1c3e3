"""The catalog of everything that can be picked by name."""

from __future__ import annotations

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
    SENSITIVITY_METRIC,
    TRAINING_STRATEGY,
    EntryT,
    PluginKind,
)
from palette_core.plugins.lut_quantizers import LutQuantizerEntry
from palette_core.plugins.metrics import SensitivityMetricEntry
from palette_core.plugins.shelves import Quarantined, Shelf
from palette_core.plugins.training import TrainingStrategyEntry

# Backends that exist as distributions of this project, so a missing one can name its package.
KNOWN_BACKENDS = {
    "coreai": "palette-core-coreai",
    "coreml": "palette-core-coreml",
}


@dataclass(frozen=True)
class Catalog:
    """Every registered plug-in: ``catalog[kind]`` is the shelf of a kind of `KINDS`.

    The kinds that are asked for most have a property each, which says the same in fewer words.
    """

    by_kind: Mapping[PluginKind[Any], Shelf[Any]]
    quarantined: tuple[Quarantined, ...] = ()

    def __getitem__(self, kind: PluginKind[EntryT]) -> Shelf[EntryT]:
        return self.by_kind[kind]

    def shelves(self) -> tuple[Shelf[Any], ...]:
        """Return one shelf per kind, in the order of `KINDS`."""
        return tuple(self[kind] for kind in KINDS)

    @property
    def clusterers(self) -> Shelf[ClustererEntry]:
        """The clustering algorithms."""
        return self[CLUSTERER]

    @property
    def granularities(self) -> Shelf[GranularityEntry]:
        """The granularities."""
        return self[GRANULARITY]

    @property
    def lut_quantizers(self) -> Shelf[LutQuantizerEntry]:
        """The LUT quantizers."""
        return self[LUT_QUANTIZER]

    @property
    def training_strategies(self) -> Shelf[TrainingStrategyEntry]:
        """The training strategies."""
        return self[TRAINING_STRATEGY]

    @property
    def export_backends(self) -> Shelf[ExportBackendEntry]:
        """The export backends."""
        return self[EXPORT_BACKEND]

    @property
    def sensitivity_metrics(self) -> Shelf[SensitivityMetricEntry]:
        """The sensitivity metrics."""
        return self[SENSITIVITY_METRIC]

    def backend(self, name: str) -> ExportBackendEntry:
        """Return the export backend ``name``.

        Raises:
            MissingBackendError: it is one of ours, but its distribution is not installed.
            UnknownPluginError: nobody knows it.
        """
        shelf = self.export_backends
        broken = [q for q in self.quarantined if q.distribution.name == KNOWN_BACKENDS.get(name)]
        if name in KNOWN_BACKENDS and name not in shelf.names() and not broken:
            raise MissingBackendError(
                f"export backend {name!r} needs the plug-in {KNOWN_BACKENDS[name]!r}: "
                f"pip install {KNOWN_BACKENDS[name]}; installed: {', '.join(shelf.names())}"
            )
        return shelf.get(name)


def discover() -> Catalog:
    """Load every entry point, those of the built-in plug-ins first, and return a fresh catalog."""
    found = find_plugins()
    quarantined = tuple(found.quarantined)
    shelves = {kind: Shelf(kind, tuple(found.entries[kind]), quarantined) for kind in KINDS}
    return Catalog(shelves, quarantined)


@lru_cache(maxsize=1)
def get_catalog() -> Catalog:
    """Return the catalog of this process, discovered on first use."""
    return discover()
