"""The built-in plug-ins, registered through the same hooks as anybody's.

Factories import their modules when called, as every plug-in's should.
"""

from __future__ import annotations

from typing import Any

import torch

from palette_core.clustering._vector_options import KMeansVectorOptions
from palette_core.clustering.kmeans1d import KMeans1dOptions
from palette_core.granularity import PerGroupedChannelGranularity, PerTensorGranularity
from palette_core.hookspecs import hookimpl
from palette_core.interfaces import (
    INTERFACE_VERSION,
    Backend,
    Clusterer,
    ClustererEntry,
    ExportBackendEntry,
    GranularityEntry,
    LutQuantizer,
    LutQuantizerEntry,
    TrainingStrategy,
    TrainingStrategyEntry,
)
from palette_core.spec import FP8_DTYPES, QuantizationSpec


def _kmeans1d(options: Any) -> Clusterer:
    from palette_core.clustering.kmeans1d import KMeans1d

    return KMeans1d(options)


def _kmeans_vector(options: Any) -> Clusterer:
    from palette_core.clustering.kmeans_vector import KMeansVector

    return KMeansVector(options)


def _integer(spec: QuantizationSpec, options: Any) -> LutQuantizer:
    from palette_core.lut_quantizers.integer import IntegerLutQuantizer

    return IntegerLutQuantizer(spec, options)


def _float8(spec: QuantizationSpec, options: Any) -> LutQuantizer:
    from palette_core.lut_quantizers.float8 import Float8LutQuantizer

    return Float8LutQuantizer(spec, options)


def _frozen(options: Any) -> TrainingStrategy:
    from palette_core.training.frozen import Frozen

    return Frozen(options)


def _torch(options: Any) -> Backend:
    from palette_core.backends.packed import PackedBackend

    return PackedBackend(options)


@hookimpl
def palette_core_clusterers() -> list[ClustererEntry]:
    """Scalar and vector k-means."""
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
            thread_safe=True,
        ),
        LutQuantizerEntry(
            name="float8",
            summary="8-bit floats e4m3fn and e5m2, scale fitted to the entries",
            interface=INTERFACE_VERSION,
            factory=_float8,
            dtypes=FP8_DTYPES,
            is_default=True,
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
        )
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
        )
    ]
