"""Registers the two documented granularities."""

from __future__ import annotations

from palette_core.plugins import (
    INTERFACE_VERSION,
    GranularityEntry,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    hookimpl,
)


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
