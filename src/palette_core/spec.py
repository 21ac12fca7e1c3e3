"""Rules for one weight: the specs and granularities, as the reference groups them."""

from palette_core.config.spec import (
    Granularity,
    PalettizationGranularity,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    QuantizationScheme,
    QuantizationSpec,
    default_weight_palettization_spec,
)

__all__ = [
    "Granularity",
    "PalettizationGranularity",
    "PalettizationSpec",
    "PerGroupedChannelGranularity",
    "PerTensorGranularity",
    "QuantizationScheme",
    "QuantizationSpec",
    "default_weight_palettization_spec",
]
