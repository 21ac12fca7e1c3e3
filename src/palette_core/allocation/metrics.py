"""Where sensitivity metrics are made and called: failures name them, and nonsense stops there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from palette_core.errors import AllocationError, ClusteringError
from palette_core.plugins import Candidate, SensitivityMetric
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.guards import guarded
from palette_core.plugins.shelves import validate_options


def make_metric(catalog: Catalog, name: str, options: Mapping[str, Any]) -> SensitivityMetric:
    """Make the sensitivity metric ``name``; what it returns does as the plug-in does, and checks.

    Raises:
        UnknownPluginError: nobody knows it.
        PluginOptionsError: its options do not validate.
        ClusteringError: making it fails.
        AllocationError: it makes something else.
    """
    item = catalog.sensitivity_metrics.find(name)
    valid = validate_options(item.entry, dict(options))
    who = f"sensitivity metric {name!r} ({item.distribution})"
    made: object = guarded(who, ClusteringError, lambda: item.entry.factory(valid))
    if isinstance(made, SensitivityMetric):
        return _CheckedMetric(who, made)
    raise AllocationError(f"{who}: its factory made {made!r}, which is no SensitivityMetric")


@final
class _CheckedMetric(SensitivityMetric):
    def __init__(self, who: str, metric: SensitivityMetric) -> None:
        self._who, self._metric = who, metric

    def loss(self, candidate: Candidate) -> float:
        """Ask the plug-in.

        Raises:
            ClusteringError: it fails.
            AllocationError: it predicts what is no finite number of at least 0.
        """
        who = f"{candidate.name}: {self._who}"
        loss = guarded(who, ClusteringError, lambda: float(self._metric.loss(candidate)))
        if 0 <= loss < float("inf"):
            return loss
        raise AllocationError(
            f"{who} predicts a loss of {loss}, which is no finite number of at least 0"
        )
