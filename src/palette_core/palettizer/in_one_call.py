"""Palettizing a model in one call, by the few settings that matter most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from torch import nn

from palette_core.config import KMeansPalettizerConfig, ModuleKMeansPalettizerConfig
from palette_core.config.op import states_of
from palette_core.config.presets import every_matrix
from palette_core.config.spec import (
    Granularity,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
)
from palette_core.engine.results import Report
from palette_core.model import ExampleInputs
from palette_core.palettizer.palettizer import KMeansPalettizer
from palette_core.planning import OnIncompatible


class Palettized(NamedTuple):
    """A model that computes with palettes, and what was done.

    Attributes:
        model: the prepared model, the one that was given.
        report: sizes, signal-to-noise and seconds by tensor, and how much is covered.
    """

    model: nn.Module
    report: Report


def palettize(
    model: nn.Module,
    inputs: ExampleInputs,
    bits: Literal[1, 2, 3, 4, 6, 8] = 4,
    group_size: int | None = 16,
    algorithm: str | None = None,
    *,
    scale_block_size: int | None = None,
    all_matrices: bool = False,
    calibration: Iterable[Any] | None = None,
    num_workers: int = 1,
    on_incompatible: OnIncompatible = "skip",
    show_progress: bool | None = None,
) -> Palettized:
    """Palettize a model in place, and return it with the report.

    ``KMeansPalettizer(model).export(path, inputs)`` then writes a file; `KMeansPalettizer` with a
    config does the same with any other setting.

    Args:
        model: the model; changed in place, see `KMeansPalettizer.prepare`.
        inputs: example inputs, as `KMeansPalettizer.prepare` takes them.
        bits: bits per index, so a look-up table has ``2 ** bits`` entries.
        group_size: neighbouring output channels that share a table; has to divide their number.
            None is one table per tensor.
        algorithm: name of a registered clusterer; None is k-means.
        scale_block_size: one fitted scale for every so many inputs of an output channel.
        all_matrices: take embeddings, recurrent layers, ``x @ W`` and experts that an operation
            receives whole too, not only linear layers, convolutions and attention.
        calibration: batches of inputs, for algorithms that look at them, which then palettize
            stage by stage; see `KMeansPalettizer.calibrate`.
        num_workers: 1 clusters in this process, more in that many joblib workers, alike.
        on_incompatible: ``"skip"`` leaves tensors whose shape does not fit dense, with a warning
            each; ``"error"`` raises.
        show_progress: None shows a bar on a terminal.

    Raises:
        pydantic.ValidationError: ``bits`` or another setting is not one of those that there are.
        PaletteError: see `KMeansPalettizer.prepare` and `KMeansPalettizer.calibrate`.
    """
    spec, rows = (
        PalettizationSpec(
            n_bits=bits,
            granularity=_granularity(group_size, axis),
            algorithm=algorithm,
            scale_block_size=scale_block_size,
        )
        for axis in (None, 1)
    )
    operations = every_matrix(spec, rows) if all_matrices else {}
    of_all = ModuleKMeansPalettizerConfig(op_state_spec=states_of(spec), op_type_config=operations)
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(global_config=of_all))
    if calibration is not None:
        palettizer.calibrate(calibration, sequential=True)
    prepared = palettizer.prepare(
        inputs,
        num_workers=num_workers,
        on_incompatible=on_incompatible,
        show_progress=show_progress,
    )
    assert palettizer.report is not None
    return Palettized(prepared, palettizer.report)


def _granularity(group_size: int | None, axis: Literal[1] | None) -> Granularity:
    if group_size is None:
        return PerTensorGranularity()
    return PerGroupedChannelGranularity(axis=axis, group_size=group_size)
