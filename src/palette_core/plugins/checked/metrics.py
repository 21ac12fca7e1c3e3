"""Sensitivity metrics at work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from palette_core.errors import AllocationError
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.guards import guarded, make
from palette_core.plugins.kinds import SENSITIVITY_METRIC
from palette_core.plugins.metrics import Candidate, SensitivityMetric


def make_metric(catalog: Catalog, name: str, options: Mapping[str, Any]) -> SensitivityMetric:
    """Make the sensitivity metric ``name``; what it returns does as the plug-in does, and checks.

    Raises:
        UnknownPluginError: nobody knows it.
        PluginOptionsError: its options do not validate.
        AllocationError: making it fails, or makes something else.
    """
    made, who = make(catalog[SENSITIVITY_METRIC].find(name), options)
    return _CheckedMetric(who, made)


@final
class _CheckedMetric(SensitivityMetric):
    def __init__(self, who: str, metric: SensitivityMetric) -> None:
        self._who, self._metric = who, metric

    def loss(self, candidate: Candidate) -> float:
        """Ask the plug-in.

        Raises:
            AllocationError: it fails, or predicts what is no finite number of at least 0.
        """
        who = f"{candidate.name}: {self._who}"
        loss = guarded(
            who,
            AllocationError,
            lambda: float(self._metric.loss(candidate)),
            tensor=candidate.name,
        )
        if 0 <= loss < float("inf"):
            return loss
        raise AllocationError(
            f"{who} predicts a loss of {loss}, which is no finite number of at least 0"
        )
