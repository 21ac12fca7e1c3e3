"""Views of an operation's input as vectors that rows of its weight are multiplied with."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1 << 22  # values of unfolded input held at once
_PADDED = 1 << 20  # values of padded input held at once
MOST_COORDINATES = 64  # of windows that are multiplied by the kernel for small ones


class InputView(ABC):
    """Turns the raw input of an operation into input vectors. Frozen, compared by value.

    Attributes:
        rows: axes of the weight that are outputs, as in `InputMoments`.
        is_diagonal: inputs are one-hot, so only counts are kept.
    """

    rows: tuple[int, ...] = (0,)
    is_diagonal: bool = False

    @abstractmethod
    def vectors(self, raw: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yield, in pieces, the first matrix that they belong to and ``[G', C, T]`` float32.

        G' groups from the first one on have the same number of vectors, T, which are columns.
        Linear in the input, unless ``is_diagonal``.
        """

    def products(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor | None, int] | None:
        """Return sums over all vectors where there is a faster way than by vectors, else None.

        Args:
            raw: the input.
            gap: something of its shapes.

        Returns:
            Σ x xᵀ and Σ (x of the gap) xᵀ, ``[G, C, C]`` float64, and the number of vectors.
        """
        del raw, gap
        return None

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
class Features(InputView):
    """The last axis holds the C coordinates: linear layers and products with a matrix.

    Attributes:
        parts: how many raw inputs there are, each for its own matrix: for a share of the
            outputs, or for one of the experts on the weight's first axis.
        rows: axes of the weight that are outputs.
    """

    parts: int = 1
    rows: tuple[int, ...] = (0,)

    def vectors(self, raw: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yield rows of the flattened inputs."""
        for part, x in enumerate(raw):
            rows = x.reshape(-1, x.shape[-1])
            step = max(1, _CHUNK // max(1, rows.shape[1]))
            for piece in torch.split(rows, step):
                yield part, piece.float().t()[None]

    def groups(self) -> int:
        """Return ``parts``."""
        return self.parts

    def outputs(self, output: Tensor) -> Tensor | None:
        """Return the flattened outputs."""
        return output.reshape(-1, output.shape[-1]) if self.parts == 1 else None


@final
@dataclass(frozen=True)
class Contraction(InputView):
    """Some axes of the input hold the coordinates, and every index of the others is a vector.

    Attributes:
        columns: axes of the input that are summed over, in the order of the weight's, counted
            from the end.
        n_groups: G, the extent of ``batch``.
        batch: axis of the input that it shares with the weight's first axis and with the
            output, counted from the end: a matrix for each index of it. None where there is none.
        rows: axes of the weight that are outputs.
    """

    columns: tuple[int, ...]
    n_groups: int = 1
    batch: int | None = None
    rows: tuple[int, ...] = (0,)

    def vectors(self, raw: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yield ``[groups, coordinates, T]``, some of the other indices at a time."""
        (x,) = raw
        columns = [axis % x.dim() for axis in self.columns]
        batch = [] if self.batch is None else [self.batch % x.dim()]
        others = [axis for axis in range(x.dim()) if axis not in (*columns, *batch)]
        size = math.prod(x.shape[axis] for axis in columns)
        ordered = x.permute(*batch, *columns, *others).reshape(self.n_groups, size, -1)
        for piece in torch.split(ordered, max(1, _CHUNK // max(1, self.n_groups * size)), dim=2):
            yield 0, piece.float()

    def groups(self) -> int:
        """Return ``n_groups``."""
        return self.n_groups


@final
@dataclass(frozen=True)
class Lookup(InputView):
    """Indices into the first axis of a weight: one-hot vectors, of which only counts are kept.

    Attributes:
        size: of that axis.
        rows: axes of the weight that are outputs.
    """

    size: int
    rows: tuple[int, ...] = (1,)
    is_diagonal: bool = True

    def vectors(self, raw: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yield ``[1, size, 1]``: how often each row was looked up."""
        counts = torch.bincount(raw[0].reshape(-1).long(), minlength=self.size)
        yield 0, counts.float()[None, :, None]

    def groups(self) -> int:
        """Return 1."""
        return 1


@final
@dataclass(frozen=True)
class Windows(InputView):
    """The windows of a convolution, or of the convolution that a transposed one is.

    A transposed convolution is an ordinary one over its input with ``stride − 1`` zeros between
    neighbours, with the kernel turned round.

    Attributes:
        channels: input channels of one group.
        kernel, stride, dilation: by spatial axis.
        padding: before and after, by spatial axis.
        n_groups: groups of the convolution.
        stuffing: of a transposed convolution: distance between inputs after zeros came between;
            empty for an ordinary one.
        rows: axes of the weight that are outputs: axis 1 of a transposed convolution's.
    """

    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    n_groups: int
    stuffing: tuple[int, ...] = ()
    rows: tuple[int, ...] = (0,)

    def vectors(self, raw: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yield ``[groups, channels * kernel elements, T]``, some samples at a time."""
        x = self._batched(raw[0])
        per_sample = max(1, x[0].numel() * math.prod(self.kernel) // math.prod(self.stride))
        for piece in torch.split(x, max(1, _CHUNK // per_sample)):
            yield 0, self._unfold(self._padded(piece))

    def products(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor | None, int] | None:
        """Multiply the windows of grouped convolutions without unfolding all of them."""
        if self.n_groups == 1 or self.channels * math.prod(self.kernel) > MOST_COORDINATES:
            return None
        from palette_core.tensors._window_kernel import window_products  # numba loads slowly

        shape = (self.n_groups, self.kernel, self.stride, self.dilation)
        size = self.channels * math.prod(self.kernel)
        total = torch.zeros(self.n_groups, size, size, dtype=torch.float64)
        cross = None if gap is None else torch.zeros_like(total)
        count = 0
        x = self._batched(raw[0])
        step = max(1, _PADDED // max(1, x[0].numel()))
        others: Iterable[Tensor | None] = itertools.repeat(None)
        if gap is not None:
            others = torch.split(self._batched(gap[0]), step)
        for piece, other in zip(torch.split(x, step), others, strict=False):
            padded = self._padded(piece.cpu())
            total += window_products(padded, None, *shape)
            if other is not None and cross is not None:
                cross += window_products(self._padded(other.cpu()), padded, *shape)
            count += padded.shape[0] * math.prod(self._places(padded))
        return self._turned(total), None if cross is None else self._turned(cross), count

    def _batched(self, x: Tensor) -> Tensor:
        return x[None] if x.dim() == len(self.kernel) + 1 else x

    def _padded(self, x: Tensor) -> Tensor:
        """Return the float32 input of the convolution without padding."""
        x = x.float()
        if self.stuffing and any(distance > 1 for distance in self.stuffing):
            x = _stuffed(x, self.stuffing)
        if not any(itertools.chain.from_iterable(self.padding)):
            return x
        return F.pad(x, list(itertools.chain.from_iterable(reversed(self.padding))))

    def _places(self, x: Tensor) -> tuple[int, ...]:
        """Return how many windows the padded input has along each axis."""
        every = zip(x.shape[2:], self.kernel, self.stride, self.dilation, strict=True)
        return tuple((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in every)

    def _unfold(self, x: Tensor) -> Tensor:
        """Return all windows ``[groups, coordinates, samples * places]``, contiguous."""
        places = self._places(x)
        x = x.reshape(x.shape[0], self.n_groups, self.channels, *x.shape[2:])
        out = x.new_empty(self.n_groups, self.channels, *self.kernel, x.shape[0], *places)
        for at in itertools.product(*map(range, self.kernel)):
            # One element of every window: runs of the input, not single values, are copied.
            where: list[Any] = [
                slice(i * d, i * d + s * (n - 1) + 1, s)
                for i, d, s, n in zip(at, self.dilation, self.stride, places, strict=True)
            ]
            turned = [k - 1 - i for k, i in zip(self.kernel, at, strict=True)]
            into: Any = (slice(None), slice(None), *(turned if self.stuffing else at))
            out[into] = x[(..., *where)].movedim(0, 2)
        return out.view(self.n_groups, self.channels * math.prod(self.kernel), -1)

    def _turned(self, products: Tensor) -> Tensor:
        """Return ``[G, C, C]`` for the kernel turned round, of a transposed convolution."""
        if not self.stuffing:
            return products
        sizes = (self.channels, math.prod(self.kernel))
        return products.view(-1, *sizes, *sizes).flip(2, 4).reshape(products.shape)

    def groups(self) -> int:
        """Return ``n_groups``."""
        return self.n_groups

    def outputs(self, output: Tensor) -> Tensor | None:
        """Return outputs ``[N · places, O]``; not of transposed convolutions."""
        if self.stuffing:
            return None
        if output.dim() == len(self.kernel) + 1:
            output = output[None]
        return output.movedim(1, -1).reshape(-1, output.shape[1])


def _stuffed(x: Tensor, distance: tuple[int, ...]) -> Tensor:
    """Put zeros between neighbours, so that they are ``distance`` apart."""
    sizes = [(n - 1) * d + 1 for n, d in zip(x.shape[2:], distance, strict=True)]
    out = x.new_zeros(*x.shape[:2], *sizes)
    places: tuple[Any, ...] = (..., *(slice(None, None, d) for d in distance))
    out[places] = x
    return out
