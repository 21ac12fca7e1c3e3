"""Sums of x xᵀ over the windows of convolutions with many channels, without unfolding them.

Neighbouring windows overlap: what elements i and j of a window contribute depends on their
distance alone, but for the windows at the edges. One product of the input with itself is made for
each distance, and the edges are put right: k products in place of k² / 2 for k elements in a row.
What is to be put right is collected from call to call, as it costs little for all of them at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
import torch.nn.functional as F
from torch import Tensor

from palette_core.tensors import PartialSums

_TALL = 4096  # places in one float32 product
_EDGES = 1 << 23  # values at edges held until they are multiplied
_MOST_BESIDE = 16.0  # of squares: what is taken away again, by what is left

Place = tuple[int, ...]
Pair = tuple[int, int]


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

    def elements(self) -> list[tuple[Place, Place]]:
        """Return phase and place in it of each element of the first window."""
        every = zip(self.kernel, self.stride, self.dilation, strict=True)
        each = [[divmod(i * d, s) for i in range(k)] for k, s, d in every]
        return [
            (tuple(phase for _, phase in at), tuple(place for place, _ in at))
            for at in itertools.product(*each)
        ]

    def furthest(self) -> Place:
        """Return the last place of any element, along each axis."""
        return tuple(map(max, zip(*(place for _, place in self.elements()), strict=True)))


def is_spread(shape: Shape, x: Tensor) -> bool:
    """Return whether every element of the windows meets a fair share of what is in its channel.

    Where the edges of an input hold nearly all, float32 loses the rest when they are put right.

    Args:
        shape: of the convolution.
        x: ``[N, channels, spatial…]``, padded.
    """
    squares = x.float().square().sum(dim=0)
    most = squares.flatten(1).sum(dim=1) / (_MOST_BESIDE * math.prod(shape.stride))
    counts = shape.counts(x.shape[2:])
    for at in itertools.product(*(range(k) for k in shape.kernel)):
        every = zip(at, counts, shape.stride, shape.dilation, strict=True)
        met = [slice(i * d, i * d + (n - 1) * s + 1, s) for i, n, s, d in every]
        if not bool((squares[(slice(None), *met)].flatten(1).sum(dim=1) >= most).all()):
            return False
    return True


@dataclass(frozen=True)
class _Kind:
    """Pairs of window elements whose products are sums over the same values, edges aside.

    Of a strided convolution the input is sorted into phases, each with every s-th value: there
    windows are neighbours again.

    Attributes:
        left, right: phases of the first and of the second element, by axis.
        apart: from the first to the second, by axis, in their phases.
    """

    left: Place
    right: Place
    apart: Place


def kinds_of(shape: Shape, *, symmetric: bool) -> dict[_Kind, list[Pair]]:
    """Return pairs of window elements by kind; if ``symmetric``, of two orders of a pair one."""
    found: dict[_Kind, list[Pair]] = {}
    elements = shape.elements()
    for (i, (left, a)), (j, (right, b)) in itertools.product(enumerate(elements), repeat=2):
        if i <= j or not symmetric:
            apart = tuple(there - here for here, there in zip(a, b, strict=True))
            found.setdefault(_Kind(left, right, apart), []).append((i, j))
    return found


@final
class WindowSums(PartialSums):
    """Sums over the windows of a convolution; see `PartialSums`.

    Args:
        shape: of the convolution.
        x: ``[N, channels, spatial…]`` float32 on the CPU, padded.
        gap: of the same shape, or None.
    """

    def __init__(self, shape: Shape, x: Tensor, gap: Tensor | None) -> None:
        there = _Phases(x, shape)
        self._total = _Sums(shape, there, there, symmetric=True)
        self._cross = None
        if gap is not None:
            self._cross = _Sums(shape, _Phases(gap, shape), there, symmetric=False)

    def plus(self, other: Self) -> Self:
        """Return the sum of both; ``self`` is used up."""
        self._total.add(other._total)
        if other._cross is not None:
            if self._cross is None:
                self._cross = other._cross.copy()
            else:
                self._cross.add(other._cross)
        return self

    def copy(self) -> Self:
        """Return sums that `plus` may use up."""
        new = type(self).__new__(type(self))
        new._total = self._total.copy()
        new._cross = None if self._cross is None else self._cross.copy()
        return new

    def matrices(self) -> tuple[Tensor, Tensor | None]:
        """Return Σ x xᵀ and Σ gap xᵀ, ``[G, C, C]`` float64."""
        return self._total.matrix(), None if self._cross is None else self._cross.matrix()


class _Sums:
    """Σ a_w b_wᵀ over all windows w so far.

    Args:
        shape: of the convolution.
        left, right: a and b.
        symmetric: they are one and the same.
    """

    def __init__(self, shape: Shape, left: _Phases, right: _Phases, *, symmetric: bool) -> None:
        self._shape, self._symmetric = shape, symmetric
        self._kinds = kinds_of(shape, symmetric=symmetric)
        self._wholes = [_whole(left, right, kind, self._first(kind)) for kind in self._kinds]
        self._moved: list[Tensor] | None = None  # what has been put right already
        ends = left.ends()
        self._ends: dict[Place, list[tuple[_Ends, _Ends]]] = {
            left.counts: [(ends, ends if symmetric else right.ends())]
        }

    def add(self, other: _Sums) -> None:
        """Add the sums of one call."""
        for mine, more in zip(self._wholes, other._wholes, strict=True):
            mine.add_(more)
        for counts, ends in other._ends.items():
            self._ends.setdefault(counts, []).extend(ends)
        held = sum(e.numel() for pairs in self._ends.values() for pair in pairs for e in pair)
        if held > _EDGES:
            self._put_right()

    def copy(self) -> _Sums:
        """Return sums of their own."""
        new = _Sums.__new__(_Sums)
        new._shape, new._symmetric, new._kinds = self._shape, self._symmetric, self._kinds
        new._wholes = [whole.clone() for whole in self._wholes]
        new._moved = None if self._moved is None else [moved.clone() for moved in self._moved]
        new._ends = {counts: list(ends) for counts, ends in self._ends.items()}
        return new

    def _first(self, kind: _Kind) -> Place:
        """Return the place of the foremost first element of a kind."""
        places = [place for _, place in self._shape.elements()]
        return tuple(map(min, zip(*(places[i] for i, _ in self._kinds[kind]), strict=True)))

    def _further(self, kind: _Kind) -> Place:
        """Return how far the other first elements go from there, along each axis."""
        places = [place for _, place in self._shape.elements()]
        most = map(max, zip(*(places[i] for i, _ in self._kinds[kind]), strict=True))
        return tuple(m - b for m, b in zip(most, self._first(kind), strict=True))

    def _put_right(self) -> None:
        """Multiply what is at the edges."""
        for counts, pairs in self._ends.items():
            left = _Ends.joined([a for a, _ in pairs])
            right = left if self._symmetric else _Ends.joined([b for _, b in pairs])
            for number, kind in enumerate(self._kinds):
                moved = _moved(left, right, counts, kind, self._first(kind), self._further(kind))
                if self._moved is None:
                    self._moved = []
                if number == len(self._moved):
                    self._moved.append(moved)
                else:
                    self._moved[number] += moved
        self._ends = {}

    def matrix(self) -> Tensor:
        """Return the sums as ``[G, C, C]`` float64."""
        self._put_right()
        assert self._moved is not None
        groups, channels, _ = self._wholes[0].shape
        places = [place for _, place in self._shape.elements()]
        n = len(places)
        out = torch.empty(groups, channels, n, channels, n, dtype=torch.float64)
        every = zip(self._kinds.items(), self._wholes, self._moved, strict=True)
        for (kind, pairs), whole, moved in every:
            for i, j in pairs:
                steps = zip(places[i], self._first(kind), strict=True)
                at: Place = tuple(s - b for s, b in steps)
                out[:, :, i, :, j] = block = whole + moved[at]
                if self._symmetric and i != j:
                    out[:, :, j, :, i] = block.mT
        return out.view(groups, channels * n, channels * n)


class _Phases:
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

    def ends(self) -> _Ends:
        """Return what is where the first and the last windows differ, along each axis."""
        found = {}
        for axis, (n, most) in enumerate(zip(self.counts, self._furthest, strict=True)):
            places = torch.tensor([*range(most + 1), *range(max(n, most + 1), n + most)])
            for phase in self._flat:
                found[axis, phase] = self._plane(phase).index_select(3 + axis, places)
        return _Ends(found, self._furthest)


@dataclass(frozen=True)
class _Ends:
    """Values at the edges of an input, by axis across which the edge is and by phase.

    Attributes:
        parts: ``[G, channels, N, spatial…]``, along that axis the first places and the last.
        furthest: number of the first, less one, by axis.
    """

    parts: dict[tuple[int, Place], Tensor]
    furthest: Place

    @classmethod
    def joined(cls, each: Sequence[_Ends]) -> _Ends:
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


def _whole(left: _Phases, right: _Phases, kind: _Kind, first: Place) -> Tensor:
    """Return the sums of a kind for the foremost of its pairs, ``[G, C, C]`` float64."""
    a, b = left.masked(kind.left, first), right.moved(kind.right, kind.apart)
    whole = a.new_zeros((a.shape[0], a.shape[1], b.shape[1]), dtype=torch.float64)
    for low in range(0, a.shape[2], _TALL):
        whole += a[..., low : low + _TALL] @ b[..., low : low + _TALL].mT
    return whole


def _moved(
    left: _Ends, right: _Ends, counts: Place, kind: _Kind, first: Place, further: Place
) -> Tensor:
    """Return what the other pairs of a kind have more, ``[by place along each axis…, G, C, C]``.

    Args:
        left: the first factors at the edges.
        right: the second ones.
        counts: windows along each axis.
        kind: the kind.
        first: place of the foremost first element.
        further: along each axis, how far the others go from there.
    """
    groups, channels = next(iter(left.parts.values())).shape[:2]
    sizes = [most + 1 for most in further]
    sums = torch.zeros(*sizes, groups, channels, channels, dtype=torch.float64)
    moving = [axis for axis, most in enumerate(further) if most]
    at = tuple(b + step for b, step in zip(first, kind.apart, strict=True))
    for axes in itertools.chain(
        *(itertools.combinations(moving, n + 1) for n in range(len(moving)))
    ):
        a = left.slices(kind.left, counts, first, further, axes)
        b = right.slices(kind.right, counts, at, further, axes)
        sums += _steps((a @ b.mT).double(), further, axes)
    return sums


def _steps(found: Tensor, further: Place, axes: Place) -> Tensor:
    """Add up what windows come to at the far end, less what they leave behind, step by step."""
    for position in range(len(axes)):
        behind, ahead = found.chunk(2, dim=position)
        steps = (ahead - behind).cumsum(dim=position)
        found = torch.cat([torch.zeros_like(steps.narrow(position, 0, 1)), steps], dim=position)
    for axis in range(len(further)):
        if axis not in axes:
            found = found.unsqueeze(axis)
    return found
