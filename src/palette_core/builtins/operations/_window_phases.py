"""Padded inputs of a convolution in phases, and what is at their edges.

Of a strided convolution the input is sorted into phases, each with every s-th value: there windows
are neighbours, as they are of any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from palette_core.builtins.operations._window_shapes import Place, Shape


class Phases:
    """An input in phases, each ``[G, channels, N, spatial…]``, flat and with room at both ends.

    Attributes:
        counts: windows along each axis.
    """

    def __init__(self, x: Tensor, shape: Shape) -> None:
        self.counts = shape.counts(x.shape[2:])
        self._furthest = shape.furthest()
        x = x.reshape(x.shape[0], shape.groups, -1, *x.shape[2:]).movedim(0, 2)
        self._sizes = [n + most for n, most in zip(self.counts, self._furthest, strict=True)]
        self._room = math.prod(self._sizes)
        self._flat: dict[Place, Tensor] = {}
        for phase in dict.fromkeys(phase for phase, _ in shape.elements()):
            part = x
            every = zip(phase, shape.stride, self._sizes, strict=True)
            for axis, (begin, stride, size) in enumerate(every, start=3):
                part = part.narrow(axis, begin, part.shape[axis] - begin)
                part = part[(slice(None),) * axis + (slice(0, size * stride, stride),)]
            short = [size - have for size, have in zip(self._sizes, part.shape[3:], strict=True)]
            part = F.pad(part, [side for more in reversed(short) for side in (0, more)])
            self._flat[phase] = F.pad(part.flatten(2), [self._room, self._room])
        self._masked: tuple[tuple[Place, Place], Tensor] | None = None

    def _plane(self, phase: Place) -> Tensor:
        flat = self._flat[phase]
        inner = flat[..., self._room : flat.shape[-1] - self._room]
        return inner.reshape(*inner.shape[:2], -1, *self._sizes)

    def masked(self, phase: Place, first: Place) -> Tensor:
        """Return ``[G, channels, T]``, zero but for where windows that begin at ``first`` are."""
        if self._masked is None or self._masked[0] != (phase, first):
            mask = torch.zeros(self._sizes)
            mask[tuple(slice(b, b + n) for b, n in zip(first, self.counts, strict=True))] = 1.0
            self._masked = ((phase, first), (self._plane(phase) * mask).flatten(2))
        return self._masked[1]

    def moved(self, phase: Place, apart: Place) -> Tensor:
        """Return ``[G, channels, T]``: what is ``apart`` from each place."""
        flat, offset = self._flat[phase], 0
        for size, step in zip(self._sizes, apart, strict=True):
            offset = offset * size + step
        at = self._room + offset
        return flat[..., at : at + flat.shape[-1] - 2 * self._room]

    def ends(self) -> Ends:
        """Return what is where the first and the last windows differ, along each axis."""
        found = {}
        for axis, (n, most) in enumerate(zip(self.counts, self._furthest, strict=True)):
            places = torch.tensor([*range(most + 1), *range(max(n, most + 1), n + most)])
            for phase in self._flat:
                found[axis, phase] = self._plane(phase).index_select(3 + axis, places)
        return Ends(found, self._furthest)


@dataclass(frozen=True)
class Ends:
    """Values at the edges of an input, by axis across which the edge is and by phase.

    Attributes:
        parts: ``[G, channels, N, spatial…]``, along that axis the first places and the last.
        furthest: number of the first, less one, by axis.
    """

    parts: dict[tuple[int, Place], Tensor]
    furthest: Place

    @classmethod
    def joined(cls, each: Sequence[Ends]) -> Ends:
        """Return the edges of all samples."""
        keys = each[0].parts
        return cls({k: torch.cat([e.parts[k] for e in each], 2) for k in keys}, each[0].furthest)

    def numel(self) -> int:
        """Return how many values there are."""
        return sum(part.numel() for part in self.parts.values())

    def slices(
        self, phase: Place, counts: Place, first: Place, further: Place, axes: Place
    ) -> Tensor:
        """Return ``[ends of windows along the axes…, G, channels, N · all else]``.

        Args:
            phase: which one.
            counts: windows along each axis.
            first: where the first of them begins.
            further: how far they are moved, along each axis.
            axes: along which they are.
        """
        part = self.parts[axes[0], phase]
        for axis, (begin, n) in enumerate(zip(first, counts, strict=True)):
            if axis not in axes:
                part = part.narrow(3 + axis, begin, n)
                continue
            near = range(begin, begin + further[axis])
            places = [*near, *(place + n for place in near)]
            if axis == axes[0]:
                most = self.furthest[axis]
                cut = max(n, most + 1) - most - 1  # places left out after the first
                places = [place if place <= most else place - cut for place in places]
            part = part.index_select(3 + axis, torch.tensor(places))
        part = part.movedim([3 + axis for axis in axes], list(range(len(axes))))
        return part.flatten(len(axes) + 2)
