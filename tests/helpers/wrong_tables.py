"""Granularities and LUT quantizers that break one sentence of the contract each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from palette_core.errors import IncompatibleShapeError
from palette_core.plugins import (
    Granularity,
    GranularityEntry,
    LutQuantizer,
    LutQuantizerEntry,
    NoOptions,
)
from palette_core.spec import QuantizationSpec
from palette_core.tensors.codebook import QuantizedLut


class Rows(Granularity):
    """Runs of rows, done right; each of the others does one thing wrong."""

    type: Literal["wrong"] = "wrong"
    rows: int = Field(default=4, description="rows of a block")

    def block_shape(self, shape, default_axis):
        if shape[0] % self.rows:
            raise IncompatibleShapeError(f"{self.rows} rows do not divide axis 0 of shape {shape}")
        return (self.rows, *shape[1:])


class Unasked(Rows):
    def block_shape(self, shape, default_axis):
        return (self.rows, *shape[1:])


class Remembering(Rows):
    """Every other answer is another one."""

    def block_shape(self, shape, default_axis):
        block = super().block_shape(shape, default_axis)
        return block if next(_calls) % 2 else shape


class Curt(Rows):
    def block_shape(self, shape, default_axis):
        if shape[0] % self.rows:
            raise ValueError("does not fit")
        return (self.rows, *shape[1:])


class Forgetful(Rows):
    """Its option is not written into a configuration."""

    rows: int = Field(default=1, exclude=True, description="rows of a block")


_calls = itertools.count()


def granularity(model: type[Granularity]) -> GranularityEntry:
    return GranularityEntry(name="wrong", summary="wrong", interface=1, model=model)


GRANULARITIES: dict[str, GranularityEntry] = {
    "block-shape": granularity(Unasked),
    "exact-trip": granularity(Unasked),
    "refusal": granularity(Curt),
    "pure": granularity(Remembering),
    "whole-trip": granularity(Forgetful),
}

Quantize = Callable[[Tensor], QuantizedLut]


class Quantizes(LutQuantizer):
    def __init__(self, quantize: Quantize) -> None:
        self._quantize = quantize

    def quantize(self, lut: Tensor) -> QuantizedLut:
        return self._quantize(lut)


def by_scale(lut: Tensor, scale: Tensor) -> QuantizedLut:
    values = (lut.float() / scale).round().clamp(-127, 127)
    return QuantizedLut(values.to(torch.int8), scale)


def usual_scale(lut: Tensor, share: float = 1.0) -> Tensor:
    scale = lut.float().abs().amax((1, 2), keepdim=True) * share / 127
    return torch.where(scale > 0, scale, 1.0)


def right(lut: Tensor) -> QuantizedLut:
    return by_scale(lut, usual_scale(lut))


def writes(lut: Tensor) -> QuantizedLut:
    made = right(lut)
    lut.mul_(0.5)
    return made


def quantizer(quantize: Quantize, **flags: Any) -> LutQuantizerEntry:
    def factory(spec: QuantizationSpec, options: object) -> LutQuantizer:
        return Quantizes(quantize)

    return LutQuantizerEntry(
        name="wrong",
        summary="wrong",
        interface=1,
        options=NoOptions,
        factory=factory,
        dtypes=("int8",),
        **{"error_bound": 1 / 254, **flags},
    )


LUT_QUANTIZERS: dict[str, LutQuantizerEntry] = {
    "parts": quantizer(lambda lut: replace(right(lut), scale=right(lut).scale.flatten())),
    "finite": quantizer(lambda lut: by_scale(lut, usual_scale(lut.square()).sqrt())),
    "error-bound": quantizer(lambda lut: by_scale(lut, usual_scale(lut, 3.0))),
    "idempotent": quantizer(lambda lut: by_scale(lut, usual_scale(lut, 0.9)), error_bound=1.0),
    "tables-apart": quantizer(
        lambda lut: by_scale(lut, usual_scale(lut).amax().expand(len(lut), 1, 1))
    ),
    "inputs-untouched": quantizer(writes),
    "same-result": quantizer(
        lambda lut: by_scale(lut, usual_scale(lut) * (1 + torch.rand(1) * 1e-3))
    ),
}
