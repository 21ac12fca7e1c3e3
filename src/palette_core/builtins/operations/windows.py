"""Windows of a convolution's input: the vectors that rows of its weight are multiplied with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from palette_core.tensors import InputView, PartialSums

if TYPE_CHECKING:
    from palette_core.builtins.operations._window_shapes import Shape

_CHUNK = 1 << 22  # values of unfolded input held at once
_PADDED = 1 << 20  # values of padded input held at once
_LARGE = 1 << 15  # values of a sample that are worth a product of their own
_TALL = 4096  # windows in one float32 sum, where there are no more in a sample
_MANY, _WORTH = 32, 1.9  # channels, and gain, from which on overlaps are made use of
_FEW = 4  # channels by those that may be multiplied in float64
_MOST_ELEMENTS = 256  # of the kernels of depthwise convolutions that are multiplied by planes
MOST_COORDINATES = 64  # of windows that are multiplied by the kernel for small ones


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
        if self._is_pointwise() and x[0].numel() >= _LARGE:
            for sample in x:  # as it lies there
                yield 0, sample.float().flatten(1)[None]
            return
        per_sample = max(1, x[0].numel() * math.prod(self.kernel) // math.prod(self.stride))
        for piece in torch.split(x, max(1, _CHUNK // per_sample)):
            yield 0, self._unfold(self._padded(piece))

    def goes_by_vectors(self, raw: tuple[Tensor, ...]) -> bool:
        """Return whether no value is in several windows, and there are no groups."""
        del raw
        return self._is_pointwise()

    def products(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor | None, int] | None:
        """Multiply the windows of grouped convolutions without unfolding all of them."""
        if self._is_depthwise():
            return self._by_planes(raw, gap)
        if self.n_groups == 1 or self.channels * math.prod(self.kernel) > MOST_COORDINATES:
            return None
        from palette_core.builtins.operations._window_kernel import (
            window_products,  # numba loads slowly
        )

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

    def _is_pointwise(self) -> bool:
        """Return whether windows are the values of all channels at one place, each once."""
        edges = [*self.stuffing, *self.stride, *self.kernel]
        return self.n_groups == 1 and set(edges) == {1} and not any(map(any, self.padding))

    def _is_depthwise(self) -> bool:
        """Return whether every channel is convolved for itself, along one or two axes."""
        from palette_core._common.kernels import may_compile  # numba loads slowly

        alone = self.channels == 1 and self.n_groups > 1
        few = len(self.kernel) < 3 and math.prod(self.kernel) <= _MOST_ELEMENTS
        return alone and few and may_compile()  # of machine instructions there is no plain form

    def _by_planes(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor | None, int]:
        """Return `products`, each channel's alone."""
        from palette_core.builtins.operations._depthwise_sums import depthwise_products

        x, shape, before, windows = self._planes(raw)
        total = self._turned(depthwise_products(x, None, shape, before, windows))
        cross = None
        if gap is not None:
            beside = self._plane(gap[0])
            cross = self._turned(depthwise_products(beside, x, shape, before, windows))
        return total, cross, x.shape[0] * math.prod(windows)

    def _planes(self, raw: tuple[Tensor, ...]) -> tuple[Tensor, Shape, list[int], tuple[int, ...]]:
        """Return ``[N, channels, A, B]``, what else `depthwise_products` takes, and windows."""
        from palette_core.builtins.operations._window_shapes import Shape

        blank = [1] * (2 - len(self.kernel))
        each = ((*blank, *sizes) for sizes in (self.kernel, self.stride, self.dilation))
        shape = Shape(self.n_groups, *each)
        around = [(0, 0)] * len(blank) + list(self.padding)
        if self._is_reshaped():
            around = [(0, 0)] * 2
        x = self._plane(raw[0])
        padded = [size + sum(beside) for size, beside in zip(x.shape[2:], around, strict=True)]
        return x, shape, [first for first, _ in around], shape.counts(padded)

    def _plane(self, x: Tensor) -> Tensor:
        x = self._batched(x.detach()).cpu()
        x = self._padded(x) if self._is_reshaped() else x.float()
        return x.reshape(*x.shape[:2], *[1] * (2 - len(self.kernel)), *x.shape[2:])

    def _is_reshaped(self) -> bool:
        """Return whether the convolution's input is more than a padded one."""
        return bool(self.stuffing) or min(itertools.chain.from_iterable(self.padding)) < 0

    def moved(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...], matrices: Tensor
    ) -> Tensor | None:
        """Convolve the gap with W, and take that for the gradient of W's outputs."""
        if not self._fits(raw[0], matrices):
            return None
        x, rank = self._batched(raw[0].detach()), len(self.kernel)
        weight = matrices.reshape(-1, self.channels, *self.kernel)
        total = torch.zeros(weight.shape, dtype=torch.float64)
        per_sample = math.prod(self._places(self._padded(x[:1])))
        step = max(1, _TALL // max(1, per_sample))
        for piece, other in zip(
            torch.split(x, step), torch.split(self._batched(gap[0]), step), strict=True
        ):
            there = [self.stride, [0] * rank, self.dilation, False, [0] * rank, self.n_groups]
            beside = self._padded(other.cpu())
            outputs = torch.ops.aten.convolution(beside, weight, None, *there)
            total += torch.ops.aten.convolution_backward(
                outputs, self._padded(piece.cpu()), weight, None, *there, [False, True, False]
            )[1]
        return total.view(matrices.shape)

    def _fits(self, x: Tensor, matrices: Tensor) -> bool:
        """Return whether matrices can be convolved with, in the place of an ordinary weight."""
        channels, size = self.n_groups * self.channels, self.channels * math.prod(self.kernel)
        fits = matrices.shape[::2] == (self.n_groups, size)
        return fits and not self.stuffing and x.shape[-1 - len(self.kernel)] == channels

    def products_and_moved(
        self, raw: tuple[Tensor, ...], before: tuple[Tensor, ...], matrices: Tensor
    ) -> tuple[Tensor, Tensor, int] | None:
        """Multiply planes of single channels while they are in the cache."""
        if not (self._is_depthwise() and self._fits(raw[0], matrices)):
            return None
        from palette_core.builtins.operations._depthwise_sums import depthwise_sums

        x, shape, around, windows = self._planes(raw)
        found = depthwise_sums(x, self._plane(before[0]), matrices, shape, around, windows)
        return *found, x.shape[0] * math.prod(windows)

    def partial(
        self, raw: tuple[Tensor, ...], gap: tuple[Tensor, ...] | None
    ) -> tuple[PartialSums, int] | None:
        """Multiply what overlapping windows share once, where there are many channels."""
        x = self._batched(raw[0])
        if self.stuffing or not self._overlaps(x):
            return None
        from palette_core.builtins.operations._window_correlations import WindowSums
        from palette_core.builtins.operations._window_shapes import Shape, crowded

        shape = Shape(self.n_groups, self.kernel, self.stride, self.dilation)
        step = max(1, _CHUNK // max(1, x[0].numel()))
        others: Iterable[Tensor | None] = itertools.repeat(None)
        if gap is not None:
            others = torch.split(self._batched(gap[0]), step)
        sums, count = None, 0
        for piece, other in zip(torch.split(x, step), others, strict=False):
            padded = self._padded(piece.cpu())
            beside = None if other is None else self._padded(other.cpu())
            apart = crowded(shape, padded)
            if beside is not None:
                apart |= crowded(shape, beside)
            exactly = apart.view(self.n_groups, -1).any(dim=0).nonzero()[:, 0]
            if len(exactly) > self.channels // _FEW:
                return None
            count += padded.shape[0] * math.prod(self._places(padded))
            more = WindowSums(shape, padded, beside, exactly)
            sums = more if sums is None else sums.plus(more)
        return None if sums is None else (sums, count)

    def _overlaps(self, x: Tensor) -> bool:
        """Return whether windows of an input share so much that it pays to multiply it once."""
        every = zip(self.kernel, self.stride, self.dilation, x.shape[2:], self.padding, strict=True)
        gain = 1.0  # products of whole windows by products of what is apart
        for k, s, d, size, around in every:
            places = [divmod(i * d, s) for i in range(k)]
            pairs = itertools.product(places, repeat=2)
            kinds = {(p, q, b - a) for (a, p), (b, q) in pairs}
            n = max(1, (size + sum(around) - d * (k - 1) - 1) // s + 1)
            gain *= k * k / len(kinds) * n / (n + places[-1][0])
        return self.channels >= _MANY and gain >= _WORTH

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
