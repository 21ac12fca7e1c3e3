"""Registers the built-in sensitivity metrics."""

from __future__ import annotations

from typing import Any

from palette_core.builtins.metrics.options import OutputOptions
from palette_core.plugins import (
    INTERFACE_VERSION,
    SensitivityMetric,
    SensitivityMetricEntry,
    hookimpl,
)


def _data_free(options: Any) -> SensitivityMetric:
    from palette_core.builtins.metrics.tensors import DataFree

    return DataFree(options)


def _fisher(options: Any) -> SensitivityMetric:
    from palette_core.builtins.metrics.tensors import Fisher

    return Fisher(options)


def _hessian(options: Any) -> SensitivityMetric:
    from palette_core.builtins.metrics.tensors import Hessian

    return Hessian(options)


def _output(options: Any) -> SensitivityMetric:
    from palette_core.builtins.metrics.outputs import OutputDivergence

    return OutputDivergence(options)


@hookimpl
def palette_core_sensitivity_metrics() -> list[SensitivityMetricEntry]:
    """Metrics that predict the loss from palettizing a weight."""
    return [
        SensitivityMetricEntry(
            name="data_free",
            summary="relative squared error of the weight",
            interface=INTERFACE_VERSION,
            factory=_data_free,
        ),
        SensitivityMetricEntry(
            name="fisher",
            summary="squared error weighted by squared gradients of the loss",
            interface=INTERFACE_VERSION,
            factory=_fisher,
            needs_squares=True,
        ),
        SensitivityMetricEntry(
            name="hessian",
            summary="squared error of the layer's output on calibration inputs",
            interface=INTERFACE_VERSION,
            factory=_hessian,
            needs_moments=True,
        ),
        SensitivityMetricEntry(
            name="output",
            summary="divergence of the model's outputs, one weight palettized at a time",
            interface=INTERFACE_VERSION,
            factory=_output,
            options=OutputOptions,
            needs_outputs=True,
        ),
    ]
