"""Nets made on the spot, with batches, for ``data_aware.py``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Task = tuple[nn.Module, list[tuple[Any, ...]]]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


class _Layer(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(size, size) for _ in range(4))
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.first, self.second = nn.LayerNorm(size), nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        heads = [p(x).unflatten(-1, (8, -1)).transpose(1, 2) for p in (self.q, self.k, self.v)]
        mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = self.first(x + self.o(mixed))
        return self.second(x + self.down(nn.functional.gelu(self.up(x))))


class _Lines(nn.Module):
    """A stem and 28 depthwise separable convolutions, 57 in all, over images of lines of text.

    It is written as converters write nets: each operation is a child of the model, so that no part
    of it is one that repeats.
    """

    _WIDTHS = (48,) * 5 + (96,) * 6 + (192,) * 10 + (384,) * 8
    _NARROWED = (4, 10, 20)  # lines lose half of their height before these, and no width

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._add(nn.Conv2d(3, 48, 3, stride=2, padding=1))
        for at, (wide, wider) in enumerate(itertools.pairwise(self._WIDTHS)):
            stride = (2, 1) if at in self._NARROWED else 1
            self._add(nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide))
            self._add(nn.Conv2d(wide, wider, 1))

    def _add(self, convolution: nn.Conv2d) -> None:
        self.add_module(f"conv_{self.count}", convolution)
        self.add_module(f"norm_{self.count}", nn.BatchNorm2d(convolution.out_channels))
        self.add_module(f"act_{self.count}", nn.Hardswish())
        self.count += 1

    def forward(self, x: Tensor) -> Tensor:
        for at in range(self.count):
            made = x
            for part in ("conv", "norm", "act"):
                made = self.get_submodule(f"{part}_{at}")(made)
            x = x + made if x.shape == made.shape else made
        return x


def stages() -> Task:
    """57 small convolutions, each a block, where most of the time is the solver's."""
    images = [(torch.randn(4, 16, 24, 24),) for _ in range(6)]
    return nn.Sequential(*(_Residual(16) for _ in range(57))), images


def recogniser() -> Task:
    """57 convolutions of a recogniser of text, none in a block, where most is the model's."""
    return _Lines(), [(torch.randn(8, 3, 48, 320),) for _ in range(4)]


def bert() -> Task:
    """Eight layers of an encoder."""
    return nn.Sequential(*(_Layer(256) for _ in range(8))), [
        (torch.randn(4, 64, 256),) for _ in range(8)
    ]


def wide() -> Task:
    """Six 1-D convolutions of 128 channels, 15 wide."""
    parts = [p for _ in range(6) for p in (nn.Conv1d(128, 128, 15, padding=7), nn.ReLU())]
    return nn.Sequential(*parts), [(torch.randn(4, 128, 1000),) for _ in range(8)]


def small() -> Task:
    """A layer of each kind, for kernels to be loaded or compiled before anything is measured."""
    convolutions = [
        nn.Conv2d(8, 8, 3, groups=groups, stride=n) for groups in (1, 8) for n in (1, 2)
    ]
    parts = (*convolutions, nn.Flatten(2), nn.Conv1d(8, 32, 3), nn.Linear(7, 32), _Layer(32))
    return nn.Sequential(*parts), [(torch.randn(4, 8, 24, 24),) for _ in range(2)]


NETS: dict[str, Callable[[], Task]] = {
    "stages": stages,
    "recogniser": recogniser,
    "bert": bert,
    "wide": wide,
}
