"""Shape of a convolution, and which inputs can be multiplied in float32 as windows overlap."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_BESIDE = 16.0  # of squares: what is taken away again, by what is left

Place = tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """Shape of a convolution, by spatial axis, and its groups of channels."""

    groups: int
    kernel: Place
    stride: Place
    dilation: Place

    def counts(self, sizes: Sequence[int]) -> Place:
        """Return how many windows there are along each axis of a padded input."""
        every = zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        return tuple((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in every)

    def elements(self) -> tuple[tuple[Place, Place], ...]:
        """Return phase and place in it of each element of the first window."""
        return _elements(self.kernel, self.stride, self.dilation)

    def furthest(self) -> Place:
        """Return the last place of any element, along each axis."""
        return tuple(map(max, zip(*(place for _, place in self.elements()), strict=True)))


@functools.lru_cache(64)
def _elements(kernel: Place, stride: Place, dilation: Place) -> tuple[tuple[Place, Place], ...]:
    every = zip(kernel, stride, dilation, strict=True)
    each = [[divmod(i * d, s) for i in range(k)] for k, s, d in every]
    return tuple(
        (tuple(phase for _, phase in at), tuple(place for place, _ in at))
        for at in itertools.product(*each)
    )


def crowded(shape: Shape, x: Tensor) -> Tensor:
    """Return ``[channels]``: an element of the windows misses most of what is in a channel.

    Where the edges of an input hold nearly all, float32 loses the rest when they are put right.

    Args:
        shape: of the convolution.
        x: ``[N, channels, spatial…]``, padded.
    """
    squares = x.float().square().sum(dim=0)
    most = squares.flatten(1).sum(dim=1) / (_MOST_BESIDE * math.prod(shape.stride))
    counts = shape.counts(x.shape[2:])
    found = torch.zeros(len(most), dtype=torch.bool)
    for at in itertools.product(*(range(k) for k in shape.kernel)):
        every = zip(at, counts, shape.stride, shape.dilation, strict=True)
        met = [slice(i * d, i * d + (n - 1) * s + 1, s) for i, n, s, d in every]
        found |= ~(squares[(slice(None), *met)].flatten(1).sum(dim=1) >= most)
    return found
