"""The built-in plug-ins, registered through the same hooks as anybody's.

Factories import their modules when called, as every plug-in's should.
"""

from __future__ import annotations

from typing import Any

import torch

from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1dOptions
from palette_core.builtins.clusterers.kmeans_vector.options import KMeansVectorOptions
from palette_core.builtins.clusterers.layerwise.gptq import GptqOptions
from palette_core.builtins.clusterers.layerwise.lnq import LnqOptions
from palette_core.builtins.metrics.outputs import OutputOptions
from palette_core.builtins.training._dkm_options import DkmOptions
from palette_core.config.granularity import PerGroupedChannelGranularity, PerTensorGranularity
from palette_core.config.spec import QuantizationSpec
from palette_core.plugins import (
    INTERFACE_VERSION,
    Backend,
    Clusterer,
    ClustererEntry,
    ExportBackendEntry,
    GranularityEntry,
    LutQuantizer,
    LutQuantizerEntry,
    SensitivityMetric,
    SensitivityMetricEntry,
    TrainingStrategy,
    TrainingStrategyEntry,
)
from palette_core.plugins.hookspecs import hookimpl
from palette_core.tensors.dtypes import FP8_DTYPES


def _kmeans1d(options: Any) -> Clusterer:
    from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d

    return KMeans1d(options)


def _kmeans_vector(options: Any) -> Clusterer:
    from palette_core.builtins.clusterers.kmeans_vector.clusterer import KMeansVector

    return KMeansVector(options)


def _gptq(options: Any) -> Clusterer:
    from palette_core.builtins.clusterers.layerwise.gptq import Gptq

    return Gptq(options)


def _lnq(options: Any) -> Clusterer:
    from palette_core.builtins.clusterers.layerwise.lnq import Lnq

    return Lnq(options)


def _integer(spec: QuantizationSpec, options: Any) -> LutQuantizer:
    from palette_core.builtins.lut_quantizers.integer import IntegerLutQuantizer

    return IntegerLutQuantizer(spec, options)


def _float8(spec: QuantizationSpec, options: Any) -> LutQuantizer:
    from palette_core.builtins.lut_quantizers.float8 import Float8LutQuantizer

    return Float8LutQuantizer(spec, options)


def _frozen(options: Any) -> TrainingStrategy:
    from palette_core.builtins.training.frozen import Frozen

    return Frozen(options)


def _ste(options: Any) -> TrainingStrategy:
    from palette_core.builtins.training.ste import StraightThrough

    return StraightThrough(options)


def _tables(options: Any) -> TrainingStrategy:
    from palette_core.builtins.training.tables import Tables

    return Tables(options)


def _dkm(options: Any) -> TrainingStrategy:
    from palette_core.builtins.training.dkm import DifferentiableKMeans

    return DifferentiableKMeans(options)


def _torch(options: Any) -> Backend:
    from palette_core.builtins.backends.packed import PackedBackend

    return PackedBackend(options)


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
def palette_core_clusterers() -> list[ClustererEntry]:
    """Scalar and vector k-means, and algorithms that look at the layers' inputs."""
    return [
        ClustererEntry(
            name="kmeans1d",
            summary="weighted 1-D k-means: the optimum, or within 0.1 % of it in fast mode",
            interface=INTERFACE_VERSION,
            options=KMeans1dOptions,
            factory=_kmeans1d,
            supports_importance=True,
            supports_cuda=True,
            thread_safe=True,
        ),
        ClustererEntry(
            name="kmeans_vector",
            summary="batched Lloyd iterations from greedy k-means++ seeds",
            interface=INTERFACE_VERSION,
            options=KMeansVectorOptions,
            factory=_kmeans_vector,
            supports_vector=True,
            supports_importance=True,
            supports_vector_importance=True,
            supports_cuda=True,
            thread_safe=True,
        ),
        ClustererEntry(
            name="gptq",
            summary="error feedback column by column; needs calibration",
            interface=INTERFACE_VERSION,
            options=GptqOptions,
            factory=_gptq,
            supports_vector=True,
            needs_moments=True,
            fits_quantized=True,
            keeps_zeros=True,
        ),
        ClustererEntry(
            name="lnq",
            summary="coordinate descent and least squares on the output error; needs calibration",
            interface=INTERFACE_VERSION,
            options=LnqOptions,
            factory=_lnq,
            supports_vector=True,
            needs_moments=True,
            fits_quantized=True,
            keeps_zeros=True,
        ),
    ]


@hookimpl
def palette_core_granularities() -> list[GranularityEntry]:
    """One LUT per tensor, or per group of channels."""
    return [
        GranularityEntry(
            name="per_tensor",
            summary="one look-up table for the whole weight",
            interface=INTERFACE_VERSION,
            options=PerTensorGranularity,
            model=PerTensorGranularity,
        ),
        GranularityEntry(
            name="per_grouped_channel",
            summary="one look-up table per group of neighbouring channels",
            interface=INTERFACE_VERSION,
            options=PerGroupedChannelGranularity,
            model=PerGroupedChannelGranularity,
        ),
    ]


@hookimpl
def palette_core_lut_quantizers() -> list[LutQuantizerEntry]:
    """Integer and 8-bit float entries."""
    return [
        LutQuantizerEntry(
            name="integer",
            summary="8-bit integers, symmetric or asymmetric, scale fitted to the entries",
            interface=INTERFACE_VERSION,
            factory=_integer,
            dtypes=(torch.int8, torch.uint8),
            is_default=True,
            error_bound=1 / 254,
            thread_safe=True,
        ),
        LutQuantizerEntry(
            name="float8",
            summary="8-bit floats e4m3fn and e5m2, scale fitted to the entries",
            interface=INTERFACE_VERSION,
            factory=_float8,
            dtypes=FP8_DTYPES,
            is_default=True,
            error_bound=1 / 8,
            thread_safe=True,
        ),
    ]


@hookimpl
def palette_core_training_strategies() -> list[TrainingStrategyEntry]:
    """What palettized weights do while the model trains."""
    return [
        TrainingStrategyEntry(
            name="frozen",
            summary="palettized weights stay as they are, the rest trains",
            interface=INTERFACE_VERSION,
            factory=_frozen,
        ),
        TrainingStrategyEntry(
            name="ste",
            summary="weights are their nearest entries; entries and weights both learn",
            interface=INTERFACE_VERSION,
            factory=_ste,
            trains_lut=True,
        ),
        TrainingStrategyEntry(
            name="tables",
            summary="assignments stay, entries learn: tunes what gptq and lnq chose",
            interface=INTERFACE_VERSION,
            factory=_tables,
            trains_lut=True,
        ),
        TrainingStrategyEntry(
            name="dkm",
            summary="differentiable k-means: weights attend to entries, softly at first",
            interface=INTERFACE_VERSION,
            options=DkmOptions,
            factory=_dkm,
            moves_lut=True,
        ),
    ]


@hookimpl
def palette_core_export_backends() -> list[ExportBackendEntry]:
    """Packed indices and LUTs in a safetensors checkpoint."""
    return [
        ExportBackendEntry(
            name="torch",
            summary="packed indices and LUTs, in the model and in a safetensors checkpoint",
            interface=INTERFACE_VERSION,
            factory=_torch,
            suffix=".safetensors",
            supports_mmap=True,
        )
    ]


@hookimpl
def palette_core_sensitivity_metrics() -> list[SensitivityMetricEntry]:
    """What a palettized weight is predicted to cost."""
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
