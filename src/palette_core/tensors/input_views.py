"""Views of an operation's input as vectors that rows of its weight are multiplied with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self, final

import torch
from torch import Tensor

_CHUNK = 1 << 22  # values of unfolded input held at once


class PartialSums(ABC):
    """Sums of x xᵀ over some vectors, in a form in which more are added at little cost."""

    @abstractmethod
    def plus(self, other: Self) -> Self:
        """Return the sum of both; ``self`` is used up, ``other`` stays as it is."""

    @abstractmethod
    def copy(self) -> Self:
        """Return sums that `plus` may use up."""

    @abstractmethod
    def matrices(self) -> tuple[Tensor, Tensor | None]:
        """Return Σ x xᵀ and Σ (x of the gap) xᵀ, ``[G, C, C]`` float64, the latter if known."""


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

    def goes_by_vectors(self, raw: tuple[Tensor, ...]) -> bool:
        """Return whether there is no faster way for an input than by vectors, as far as is known.

        Then `products`, `moved` and `partial` are not asked for one.
        """
        del raw
        return False

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

    def moved(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...], matrices: Tensor
    ) -> Tensor | None:
        """Return sums over all vectors where there is a faster way than by vectors, else None.

        Args:
            raw: the input.
            gap: something of its shapes.
            matrices: ``[G, R, C]`` float32, W.

        Returns:
            Σ W (x of the gap) xᵀ, ``[G, R, C]`` float64.
        """
        del raw, gap, matrices
        return None

    def products_and_moved(
        self, raw: tuple[Tensor, ...], before: tuple[Tensor, ...], matrices: Tensor
    ) -> tuple[Tensor, Tensor, int] | None:
        """Return sums of both, where they are made faster together than apart, else None.

        Args:
            raw: the input.
            before: what it was, of the same shapes.
            matrices: ``[G, R, C]`` float32, W.

        Returns:
            Σ x xᵀ, ``[G, C, C]`` float64, Σ W (x of before − raw) xᵀ, ``[G, R, C]`` float64, and
            the number of vectors.
        """
        del raw, before, matrices
        return None

    def partial(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...] | None
    ) -> tuple[PartialSums, int] | None:
        """Return the same as `products`, where it is made faster for many calls at once."""
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

    @property
    def by_outputs(self) -> bool:
        """Return whether every output is a row times a vector of the last axis of one input."""
        return False

    def only(self) -> int | None:
        """Return the one matrix that all vectors belong to, which `vectors` then counts as 0.

        None, the default, where they belong to all of them.
        """
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

    def goes_by_vectors(self, raw: tuple[Tensor, ...]) -> bool:
        """Return True."""
        del raw
        return True

    def groups(self) -> int:
        """Return ``parts``."""
        return self.parts

    def outputs(self, output: Tensor) -> Tensor | None:
        """Return the flattened outputs."""
        return output.reshape(-1, output.shape[-1]) if self.parts == 1 else None

    @property
    def by_outputs(self) -> bool:
        """Return whether there is one input, and outputs are the first axis of the weight."""
        return self.parts == 1 and self.rows == (0,)


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

    def goes_by_vectors(self, raw: tuple[Tensor, ...]) -> bool:
        """Return True."""
        del raw
        return True

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
class ThroughView(InputView):
    """The inputs of an operation that received a view of a weight, as the weight's own.

    Attributes:
        inner: how they are seen by the view.
        n_groups: G, how many matrices the weight is.
        rows: axes of the weight that are outputs.
        index: the one that the view shows, such as one of the experts on the weight's first axis;
            None where it shows all. Equal views may show different ones.
    """

    inner: InputView
    n_groups: int
    rows: tuple[int, ...]
    index: int | None = field(default=None, compare=False)

    def vectors(self, raw: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yield those of the view."""
        return self.inner.vectors(raw)

    def goes_by_vectors(self, raw: tuple[Tensor, ...]) -> bool:
        """Return whether the view does."""
        return self.inner.goes_by_vectors(raw)

    def products(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor | None, int] | None:
        """Return those of the view."""
        return self.inner.products(raw, gap)

    def moved(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...], matrices: Tensor
    ) -> Tensor | None:
        """Return those of the view."""
        return self.inner.moved(raw, gap, matrices) if self.index is None else None

    def products_and_moved(
        self, raw: tuple[Tensor, ...], before: tuple[Tensor, ...], matrices: Tensor
    ) -> tuple[Tensor, Tensor, int] | None:
        """Return those of the view."""
        if self.index is not None:
            return None
        return self.inner.products_and_moved(raw, before, matrices)

    def partial(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...] | None
    ) -> tuple[PartialSums, int] | None:
        """Return those of the view."""
        return self.inner.partial(raw, gap) if self.index is None else None

    def groups(self) -> int:
        """Return ``n_groups``."""
        return self.n_groups

    def outputs(self, output: Tensor) -> Tensor | None:
        """Return those of a view that shows the whole weight."""
        return self.inner.outputs(output) if self.index is None else None

    def only(self) -> int | None:
        """Return ``index``."""
        return self.index
