"""Layers, specs and made-up palettes that the tests of the Core ML backend share."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from palette_core.plugins import (
    Granularity,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
    QuantizationSpec,
    TensorFacts,
)
from palette_core.storage import PackedWeight, install_packed
from palette_core.tensors import BlockLayout, PalettizedTensor

BITS = (1, 2, 3, 4, 6, 8)
INT8 = QuantizationSpec(dtype="int8")
UINT8 = QuantizationSpec(dtype="uint8", qscheme="asymmetric")
E4M3 = QuantizationSpec(dtype="float8_e4m3fn")


@final
class Tiles(Granularity):
    """A granularity of a third party: tiles of 4 by 4 channels."""

    type: Literal["tiles"] = "tiles"

    def block_shape(self, shape: tuple[int, ...], default_axis: int) -> tuple[int, ...]:
        del default_axis
        return tuple(min(4, s) if axis < 2 else s for axis, s in enumerate(shape))


GRANULARITIES = {
    "per tensor": PerTensorGranularity(),
    "groups on axis 0": PerGroupedChannelGranularity(axis=0, group_size=4),
    "groups on axis 1": PerGroupedChannelGranularity(axis=1, group_size=4),
    "tiles (third party)": Tiles(),
}
LUTS = {"float": None, "int8": INT8, "uint8, affine": UINT8, "float8": E4M3}


@dataclass(frozen=True)
class Layer:
    """A kind of layer: how to make one, what to feed it, where its weight is."""

    make: Any
    inputs: tuple[Tensor, ...]
    op_type: str
    weight: str = "weight"

    @property
    def axis(self) -> int:
        return 1 if self.op_type.startswith("conv_transpose") else 0


def _signal(*shape: int) -> tuple[Tensor]:
    return (torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape),)


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


class CrossAttention(nn.MultiheadAttention):
    """Queries differ from keys, so the packed projections are split."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x + 1, x - 1, need_weights=False)[0]


LAYERS = {
    "Linear": Layer(lambda: nn.Linear(512, 8), _signal(2, 512), "linear"),
    "Conv2d": Layer(lambda: nn.Conv2d(64, 8, 3), _signal(1, 64, 3, 4), "conv2d"),
    "Conv1d": Layer(lambda: nn.Conv1d(64, 8, 3), _signal(1, 64, 4), "conv1d"),
    "Conv3d": Layer(lambda: nn.Conv3d(16, 8, (2, 3, 2)), _signal(1, 16, 2, 3, 3), "conv3d"),
    "depthwise Conv2d": Layer(
        lambda: nn.Conv2d(16, 16, 5, groups=16), _signal(1, 16, 5, 6), "conv2d"
    ),
    "ConvTranspose1d": Layer(
        lambda: nn.ConvTranspose1d(64, 8, 3), _signal(1, 64, 2), "conv_transpose1d"
    ),
    "ConvTranspose2d": Layer(
        lambda: nn.ConvTranspose2d(32, 8, (2, 3)), _signal(1, 32, 2, 2), "conv_transpose2d"
    ),
    "ConvTranspose3d": Layer(
        lambda: nn.ConvTranspose3d(16, 8, (1, 2, 3)), _signal(1, 16, 1, 2, 2), "conv_transpose3d"
    ),
    "Embedding": Layer(lambda: nn.Embedding(16, 128), (torch.arange(6),), "embedding"),
    "MultiheadAttention": Layer(
        lambda: SelfAttention(64, 2),
        _signal(2, 1, 64),
        "multi_head_attention_forward",
        "in_proj_weight",
    ),
}


@cache
def shape_of(layer: str) -> tuple[int, ...]:
    return tuple(getattr(LAYERS[layer].make(), LAYERS[layer].weight).shape)


class Together(nn.Module):
    """Layers side by side, each fed with its own input."""

    def __init__(self, layers: Iterable[tuple[str, Layer]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.kinds = []
        for kind, layer in layers:
            self.parts.append(layer.make())
            self.kinds.append(kind)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        fed = dict(zip(LAYERS, inputs, strict=True))
        return tuple(part(fed[kind]) for part, kind in zip(self.parts, self.kinds, strict=True))


INPUTS = tuple(layer.inputs[0] for layer in LAYERS.values())


@dataclass(frozen=True)
class Cell:
    """One combination of the matrix."""

    layer: str
    spec: PalettizationSpec

    def facts(self, dtype: torch.dtype = torch.float32) -> TensorFacts:
        kind, shape = LAYERS[self.layer], shape_of(self.layer)
        block = self.spec.granularity.block_shape(shape, kind.axis)
        layout = BlockLayout(shape, block, self.spec.cluster_dim, kind.axis)
        return TensorFacts("w", layout.shape, dtype, kind.op_type, layout, self.spec)


def palette(
    layout: BlockLayout,
    spec: PalettizationSpec,
    axis: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PalettizedTensor:
    """Made-up indices and tables: every index used, no two entries alike."""
    random = torch.Generator().manual_seed(seed)
    entries = spec.n_entries
    indices = torch.arange(torch.Size(layout.index_shape).numel()) % entries
    indices = indices[torch.randperm(len(indices), generator=random)]
    ones = (*layout.grid, 1, 1)
    lut_scale = zero = None
    lut = torch.randn(layout.lut_shape(entries), generator=random) * 0.05
    if spec.lut_qspec is not None:
        low, high = (-127, 128) if spec.lut_qspec.dtype == torch.int8 else (0, 256)
        shape = layout.lut_shape(entries)
        lut = torch.randint(low, high, shape, generator=random).to(spec.lut_qspec.dtype)
        lut_scale = torch.rand(ones, generator=random) * 1e-3 + 1e-4
        if spec.lut_qspec.qscheme == "asymmetric":
            zero = torch.randint(0, 256, ones, generator=random).to(lut.dtype)
    scale = None
    if spec.enable_per_channel_scale:
        sides = [s if i == axis else 1 for i, s in enumerate(layout.shape)]
        scale = (torch.rand(sides, generator=random) + 0.5).to(dtype)
    made = PalettizedTensor(
        indices.reshape(layout.index_shape).to(torch.uint8),
        lut if lut_scale is not None else lut.to(dtype),
        spec.n_bits,
        axis,
        dtype,
        lut_scale,
        zero,
        scale,
    )
    made.check()
    return made


def made_up(cells: list[Cell], dtype: torch.dtype = torch.float32) -> Together:
    """A finalized model with one layer for each cell, its weight a made-up palette."""
    torch.manual_seed(0)
    model = Together((cell.layer, LAYERS[cell.layer]) for cell in cells).eval().to(dtype)
    for i, cell in enumerate(cells):
        kind, facts = LAYERS[cell.layer], cell.facts()
        seed = zlib.crc32(repr((i, cell.layer)).encode())
        packed = PackedWeight(palette(facts.layout, cell.spec, kind.axis, seed=seed, dtype=dtype))
        install_packed(model, [f"parts.{i}.{kind.weight}"], packed)
    return model
