"""Sensitivity metrics at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from palette_core.plugins.catalog import Catalog
from palette_core.plugins.kinds import SENSITIVITY_METRIC
from palette_core.plugins.making import Made, make
from palette_core.plugins.metrics import Candidate, SensitivityMetric


def make_metric(catalog: Catalog, name: str, options: Mapping[str, Any]) -> SensitivityMetric:
    """Make the sensitivity metric ``name``; what it returns does as the plug-in does, and checks.

    Raises:
        UnknownPluginError: nobody knows it.
        PluginOptionsError: its options do not validate.
        AllocationError: making it fails, or makes something else.
    """
    return _CheckedMetric(make(catalog[SENSITIVITY_METRIC].find(name), options))


@final
class _CheckedMetric(SensitivityMetric):
    def __init__(self, made: Made[SensitivityMetric]) -> None:
        self._made = made

    def loss(self, candidate: Candidate) -> float:
        """Ask the plug-in.

        Raises:
            AllocationError: it fails, or predicts what is no finite number of at least 0.
        """
        tensor, shown = candidate.name, self._made.apart(candidate)
        outputs = candidate.outputs
        if outputs is not None and not self._made.is_ours:
            shown = replace(shown, outputs=lambda weight: self._made.apart(outputs(weight)))
        loss = self._made.ask(lambda metric: float(metric.loss(shown)), tensor=tensor)
        if 0 <= loss < float("inf"):
            return loss
        raise self._made.wrong(
            f"predicts a loss of {loss}, which is no finite number of at least 0", tensor
        )
