"""Weights in the middle of training, made without a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palette_core.config.spec import QuantizationSpec
from palette_core.plugins import LutQuantizer
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.training_problem import TrainingProblem
from palette_core.tensors.codebook import Codebook
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.nearest import assign
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.testing._probes import draw

BITS = 2
STEP = 5
_SHAPE, _BLOCK = (24, 16), (8, 16)


def training_problems(entry: Any) -> Iterator[tuple[str, TrainingProblem]]:
    """Yield what is special about a problem, and the problem, made anew.

    Weights, and tables where the entry says that somebody trains or moves them, have gone on
    since points were assigned: some points now have another entry nearest to them.
    """
    moves = entry.trains_lut or entry.moves_lut
    yield "scalars", _problem(moves, torch.float32)
    yield "scalars in bfloat16", _problem(moves, torch.bfloat16)
    yield "vectors with a channel scale", _problem(moves, torch.float32, dim=4, scaled=True)
    yield "tables in int8", _problem(moves, torch.float32, quantized=True)
    yield "zeros that stay", _problem(moves, torch.float32, zeros=True)


def _problem(
    moves: bool,
    dtype: torch.dtype,
    *,
    dim: int = 1,
    scaled: bool = False,
    quantized: bool = False,
    zeros: bool = False,
) -> TrainingProblem:
    layout = BlockLayout(_SHAPE, _BLOCK, dim, 0)
    points = layout.split(draw(*_SHAPE, seed=1))
    tables = points[:, :: points.shape[1] >> BITS][:, : 1 << BITS].contiguous()
    if dim == 1:
        tables = tables.sort(dim=1).values
    if zeros:
        points = points.masked_fill(points.abs() < 0.2, 0.0)
        tables[:, 1] = 0.0
    tables = tables.to(dtype)
    quantizer = _quantizer() if quantized else None
    made = Codebook(tables, assign(points.to(dtype), tables))
    if quantizer is not None:
        stored = quantizer.quantize(tables)
        made = Codebook(stored.dequantize(), made.codes, stored)
    scale = draw(_SHAPE[0], 1, seed=2).abs().add(0.5).to(dtype) if scaled else None
    palettized = PalettizedTensor.from_codebook(made, layout, n_bits=BITS, dtype=dtype, scale=scale)
    weight = layout.merge(_moved(points, 3, 0.3)).to(dtype)
    lut = _moved(tables, 4, 0.1) if moves else made.lut.to(dtype)
    return TrainingProblem(
        weight if scale is None else weight * scale,
        palettized,
        lut,
        STEP,
        palettized.decode,
        None if quantizer is None else quantizer.quantize,
        (lut == 0).all(-1) if zeros else None,
    )


def with_codes(problem: TrainingProblem, codes: Tensor) -> TrainingProblem:
    """Return the problem with another present assignment, ``[B, N]``."""
    old = problem.palettized
    new = replace(old, indices=old.layout.merge_codes(codes).contiguous())
    return replace(problem, palettized=new, decode=new.decode)


def tensors_of(problem: TrainingProblem) -> dict[str, Tensor]:
    """Return all that a strategy could write to."""
    found = {
        "the weight": problem.weight,
        "its tables": problem.lut,
        "the present indices": problem.palettized.indices,
        "the present palette": problem.palettized.lut,
    }
    for name, part in (
        ("the scale of the tables", problem.palettized.lut_scale),
        ("the channel scale", problem.palettized.scale),
        ("zero_entries", problem.zero_entries),
    ):
        if part is not None:
            found[name] = part
    return found


def _moved(values: Tensor, seed: int, by: float) -> Tensor:
    """Return values that have gone on; zeros are where they were."""
    step = draw(*values.shape, seed=seed).to(values.dtype) * by
    return torch.where(values == 0, values, values + step)


def _quantizer() -> LutQuantizer:
    entry = get_catalog().lut_quantizers.get("integer")
    made: LutQuantizer = entry.factory(QuantizationSpec(dtype=torch.int8), entry.options())
    return made
