"""Registers the built-in training strategies."""

from __future__ import annotations

from typing import Any

from palette_core.builtins.training.options import DkmOptions
from palette_core.plugins import (
    INTERFACE_VERSION,
    TrainingStrategy,
    TrainingStrategyEntry,
    hookimpl,
)


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


@hookimpl
def palette_core_training_strategies() -> list[TrainingStrategyEntry]:
    """Strategies for palettized weights while the model trains."""
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
