"""How an operation's input is seen as vectors that rows of its weight are multiplied with."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1 << 22  # values of unfolded input held at once


class View(ABC):
    """Turns the raw input of an operation into input vectors. Frozen, compared by value.

    Attributes:
        transposed: as in `InputMoments`.
        is_diagonal: inputs are one-hot, so only counts are kept.
    """

    transposed: bool = False
    is_diagonal: bool = False

    @abstractmethod
    def vectors(self, raw: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yield, in pieces, the first matrix that they belong to and ``[G', T, C]`` float32.

        G' groups from the first one on have the same number of vectors.
        """

    @abstractmethod
    def groups(self) -> int:
        """G, how many matrices there are."""

    def outputs(self, output: Tensor) -> Tensor | None:
        """Return ``[T, O]``, what belongs to each input vector in the order of `vectors`.

        None where that is not known.
        """
        del output
        return None


@final
@dataclass(frozen=True)
class Features(View):
    """The last axis holds the C coordinates: linear layers and products with a matrix.

    With ``parts`` > 1 there are that many raw inputs, each for its own share of the outputs.
    """

    parts: int = 1
    transposed: bool = False

    def vectors(self, raw: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yield rows of the flattened inputs."""
        for part, x in enumerate(raw):
            rows = x.reshape(-1, x.shape[-1])
            step = max(1, _CHUNK // max(1, rows.shape[1]))
            for piece in rows.split(step):
                yield part, piece.float()[None]

    def groups(self) -> int:
        """Return ``parts``."""
        return self.parts

    def outputs(self, output: Tensor) -> Tensor | None:
        """Return the flattened outputs."""
        return output.reshape(-1, output.shape[-1]) if self.parts == 1 else None


@final
@dataclass(frozen=True)
class Lookup(View):
    """Indices into the rows of a weight: one-hot vectors, of which only counts are kept."""

    rows: int
    transposed: bool = True
    is_diagonal: bool = True

    def vectors(self, raw: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yield ``[1, 1, rows]``: how often each row was looked up."""
        counts = torch.bincount(raw[0].reshape(-1).long(), minlength=self.rows)
        yield 0, counts.float()[None, None]

    def groups(self) -> int:
        """Return 1."""
        return 1


@final
@dataclass(frozen=True)
class Windows(View):
    """The windows of a convolution, or of the convolution that a transposed one is.

    A transposed convolution is an ordinary one over its input with ``stride − 1`` zeros between
    neighbours, with the kernel turned round.

    Attributes:
        channels: input channels of one group.
        kernel, stride, dilation: by spatial axis.
        padding: before and after, by spatial axis.
        n_groups: groups of the convolution.
        stuffing: of a transposed convolution: distance between inputs after zeros came between.
    """

    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    n_groups: int
    stuffing: tuple[int, ...] = ()
    transposed: bool = False

    def vectors(self, raw: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yield ``[groups, T, channels * kernel elements]``, some samples at a time."""
        x = raw[0]
        if x.dim() == len(self.kernel) + 1:  # without a batch axis
            x = x[None]
        per_sample = max(1, x[0].numel() * math.prod(self.kernel) // math.prod(self.stride))
        for piece in x.split(max(1, _CHUNK // per_sample)):
            yield 0, self._unfold(piece.float())

    def _unfold(self, x: Tensor) -> Tensor:
        if self.stuffing:
            x = _stuffed(x, self.stuffing)
        x = F.pad(x, list(itertools.chain.from_iterable(reversed(self.padding))))
        rank = len(self.kernel)
        for axis in range(rank):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            x = x.unfold(2 + axis, reach, self.stride[axis])[..., :: self.dilation[axis]]
        # [N, channels of all groups, places..., kernel...]
        if self.transposed:
            x = x.flip(tuple(range(-rank, 0)))
        x = x.reshape(x.shape[0], self.n_groups, self.channels, *x.shape[2:])
        places = list(range(3, 3 + rank))
        kernel = list(range(3 + rank, 3 + 2 * rank))
        x = x.permute(1, 0, *places, 2, *kernel)
        return x.reshape(self.n_groups, -1, self.channels * math.prod(self.kernel))

    def groups(self) -> int:
        """Return ``n_groups``."""
        return self.n_groups

    def outputs(self, output: Tensor) -> Tensor | None:
        """Return outputs ``[N · places, O]``; not of transposed convolutions."""
        if self.transposed:
            return None
        if output.dim() == len(self.kernel) + 1:
            output = output[None]
        return output.movedim(1, -1).reshape(-1, output.shape[1])


def _stuffed(x: Tensor, distance: tuple[int, ...]) -> Tensor:
    """Put zeros between neighbours, so that they are ``distance`` apart."""
    sizes = [(n - 1) * d + 1 for n, d in zip(x.shape[2:], distance, strict=True)]
    out = x.new_zeros(*x.shape[:2], *sizes)
    out[(..., *(slice(None, None, d) for d in distance))] = x
    return out
