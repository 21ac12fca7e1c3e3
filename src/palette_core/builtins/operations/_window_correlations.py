"""Sums of x xᵀ over the windows of convolutions with many channels, without unfolding them.

Neighbouring windows overlap: what elements i and j of a window contribute depends on their
distance alone, but for the windows at the edges. One product of the input with itself is made for
each distance, and the edges are put right: k products in place of k² / 2 for k elements in a row.
What is to be put right is collected from call to call, as it costs little for all of them at once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from palette_core.builtins.operations._window_phases import Ends, Phases
from palette_core.builtins.operations._window_shapes import Place, Shape
from palette_core.tensors import PartialSums

_TALL = 4096  # places in one float32 product
_EDGES = 1 << 23  # values at edges held until they are multiplied

Pair = tuple[int, int]


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
        exactly: numbers of channels, within their group, that are multiplied in float64.
    """

    def __init__(self, shape: Shape, x: Tensor, gap: Tensor | None, exactly: Tensor) -> None:
        there = _Factor(x, shape, exactly)
        self._total = _Sums(shape, there, there, symmetric=True)
        self._cross = None
        if gap is not None:
            self._cross = _Sums(shape, _Factor(gap, shape, exactly), there, symmetric=False)

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


class _Factor:
    """An input of which some channels are multiplied in float64.

    Attributes:
        channels: their numbers.
        single: all channels.
        double: all channels in float64, as single where there are no such ones.
    """

    def __init__(self, x: Tensor, shape: Shape, channels: Tensor) -> None:
        self.channels = channels
        self.single = self.double = Phases(x, shape)
        if len(channels):
            self.double = Phases(x.double(), shape)


class _Sums:
    """Σ a_w b_wᵀ over all windows w so far.

    Args:
        shape: of the convolution.
        left, right: a and b.
        symmetric: they are one and the same.
    """

    def __init__(self, shape: Shape, left: _Factor, right: _Factor, *, symmetric: bool) -> None:
        self._shape, self._symmetric = shape, symmetric
        self._kinds = kinds_of(shape, symmetric=symmetric)
        self._wholes = [_whole(left, right, kind, self._first(kind)) for kind in self._kinds]
        self._moved: list[Tensor] | None = None  # what has been put right already
        ends = left.double.ends()
        self._ends: dict[Place, list[tuple[Ends, Ends]]] = {
            left.double.counts: [(ends, ends if symmetric else right.double.ends())]
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
            left = Ends.joined([a for a, _ in pairs])
            right = left if self._symmetric else Ends.joined([b for _, b in pairs])
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


def _whole(left: _Factor, right: _Factor, kind: _Kind, first: Place) -> Tensor:
    """Return the sums of a kind for the foremost of its pairs, ``[G, C, C]`` float64."""
    a, b = left.single.masked(kind.left, first), right.single.moved(kind.right, kind.apart)
    whole = a.new_zeros((a.shape[0], a.shape[1], b.shape[1]), dtype=torch.float64)
    for low in range(0, a.shape[2], _TALL):
        whole += a[..., low : low + _TALL] @ b[..., low : low + _TALL].mT
    some = left.channels
    if len(some):
        a, b = left.double.masked(kind.left, first), right.double.moved(kind.right, kind.apart)
        whole[:, some] = a[:, some] @ b.mT
        whole[:, :, some] = a @ b[:, some].mT
    return whole


def _moved(
    left: Ends, right: Ends, counts: Place, kind: _Kind, first: Place, further: Place
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
