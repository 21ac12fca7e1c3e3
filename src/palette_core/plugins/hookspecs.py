"""The hooks by which plug-ins register what they provide.

A distribution names a module in the entry-point group ``palette_core`` and implements any of
these hooks there with ``@hookimpl``. Hooks only collect records; keep the module free of heavy
imports, and import what the work needs inside the entries' factories.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from palette_core.plugins import (
    ClustererEntry,
    ExportBackendEntry,
    GranularityEntry,
    LutQuantizerEntry,
    SensitivityMetricEntry,
    TrainingStrategyEntry,
)

PROJECT = "palette_core"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def palette_core_clusterers() -> Iterable[ClustererEntry]:
    """Return the clustering algorithms that this distribution provides."""
    raise AssertionError("hook specifications are never called")


@hookspec
def palette_core_granularities() -> Iterable[GranularityEntry]:
    """Return the granularities that this distribution provides."""
    raise AssertionError("hook specifications are never called")


@hookspec
def palette_core_lut_quantizers() -> Iterable[LutQuantizerEntry]:
    """Return the LUT quantizers that this distribution provides."""
    raise AssertionError("hook specifications are never called")


@hookspec
def palette_core_training_strategies() -> Iterable[TrainingStrategyEntry]:
    """Return the training strategies that this distribution provides."""
    raise AssertionError("hook specifications are never called")


@hookspec
def palette_core_export_backends() -> Iterable[ExportBackendEntry]:
    """Return the export backends that this distribution provides."""
    raise AssertionError("hook specifications are never called")


@hookspec
def palette_core_sensitivity_metrics() -> Iterable[SensitivityMetricEntry]:
    """Return the sensitivity metrics that this distribution provides."""
    raise AssertionError("hook specifications are never called")
