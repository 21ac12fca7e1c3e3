"""Products of the input vectors of one call of an operation, in float32."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from palette_core._common.scratch import scratch
from palette_core.plugins import Consumption
from palette_core.tensors.input_views import InputView, PartialSums

_TALL = 4096  # vectors in one float32 product
_GLANCE = 4096  # values of an input that are looked at for a change before all of them
_WIDE = 384  # coordinates from which on symmetry saves more than smaller products cost


class Products(NamedTuple):
    """Sums of products of input vectors x, and d = x_before − x.

    Attributes:
        total: Σ x xᵀ, ``[G, C, C]``, or Σ x, ``[G, C]``.
        cross: Σ d xᵀ, ``[G, C, C]``, or None.
        moved: Σ W d xᵀ, ``[G, R, C]``, or None.
    """

    total: Tensor
    cross: Tensor | None = None
    moved: Tensor | None = None


def multiply(
    what: Consumption,
    weights: Tensor | None,
    before: tuple[Tensor, ...] | None,
    matrix: Tensor | None = None,
) -> tuple[Products | PartialSums, int]:
    """Multiply the input vectors of one call, and return how many there were, too.

    Args:
        what: the call.
        weights: how often each vector counts, see `Accumulator.add`.
        before: the input in the unchanged model, if d is of interest.
        matrix: ``[G, R, C]`` float32, W: multiply d with it first, where d is needed as vectors.
    """
    view = what.view
    if view.is_diagonal:
        counts = _count(view, what.raw)
        return Products(counts), int(counts.sum())
    gap = None if before is None else _gap(before, what.raw)
    moved = None
    if weights is None:
        partial = view.partial(what.raw, gap)
        if partial is not None:
            return partial
        if gap is not None and matrix is not None:
            moved = view.moved(what.raw, gap, matrix)
            gap = gap if moved is None else None
        made = view.products(what.raw, gap)
        if made is not None:
            return Products(*made[:2], moved), made[2]
    through = None if weights is not None else matrix
    total, cross, count = _by_vectors(what, weights, gap, through)
    if moved is None and through is not None:
        cross, moved = None, cross
    return Products(total, cross, moved), count


def _gap(before: tuple[Tensor, ...], raw: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return d in float32, good until the next call; None where it is 0: before any palette."""
    pairs = enumerate(zip(before, raw, strict=True))
    gap = tuple(_difference(f"gap {n}", b.detach(), x.detach()) for n, (b, x) in pairs)
    return gap if any(_is_something(d) for d in gap) else None


def _is_something(d: Tensor) -> bool:
    # Most inputs have changed from the first values on: then the rest need not be read.
    return bool(d.flatten()[:_GLANCE].any()) or bool(d.any())


def _difference(name: str, a: Tensor, b: Tensor) -> Tensor:
    if a.device.type != "cpu":
        return a.float() - b.float()
    out = torch.from_numpy(scratch(name, tuple(a.shape), np.float32))
    return torch.sub(a.float(), b.float(), out=out)


def _by_vectors(
    what: Consumption,
    weights: Tensor | None,
    gap: tuple[Tensor, ...] | None,
    through: Tensor | None,
) -> tuple[Tensor, Tensor | None, int]:
    """Return Σ x xᵀ, Σ d xᵀ or Σ W d xᵀ where W is ``through``, and the number of vectors."""
    view = what.view
    total: Tensor | None = None
    cross: Tensor | None = None
    at = count = 0
    n_groups = view.groups() if view.only() is None else 1
    gaps = None if gap is None else view.vectors(gap)
    for first, there in view.vectors(what.raw):
        x = there.cpu()
        other = None if gaps is None else next(gaps)[1].cpu()
        groups = n_groups * (1 if weights is None else weights.shape[0])
        # With weights there is one group of the view, and several of outputs.
        into = slice(first, first + x.shape[0]) if weights is None else slice(None)
        for low in range(0, x.shape[2], _TALL):
            piece = x[:, :, low : low + _TALL]
            part = None
            if weights is not None:
                part = weights[:, None, at + low : at + low + piece.shape[2]]
            squares = _squares(piece) if part is None else (piece * part) @ piece.mT
            total = _grown(total, squares, into, groups)
            if other is not None:
                left = other[:, :, low : low + _TALL]
                if through is not None:
                    left = through[into] @ left
                product = (left if part is None else left * part) @ piece.mT
                cross = _grown(cross, product, into, groups)
        at += x.shape[2]
        count += x.shape[0] * x.shape[2]
    if total is None:
        return torch.zeros(1, 1, dtype=torch.float64), None, 0
    # Of all matrices together; experts get different numbers of vectors.
    return total, cross, -(-count // n_groups)


def _grown(total: Tensor | None, part: Tensor, into: slice, groups: int) -> Tensor:
    """Add a product, in float64; one that is alone stays as it is, which takes half the memory."""
    if total is None and part.shape[0] == groups:
        return part
    if total is None:
        total = torch.zeros(groups, *part.shape[1:], dtype=torch.float64)
    total = total.double()
    total[into] += part
    return total


def _count(view: InputView, raw: tuple[Tensor, ...]) -> Tensor:
    """Return Σ x of one-hot vectors as ``[1, C]``."""
    return torch.cat([x.cpu().double() for _, x in view.vectors(raw)], dim=2).sum(dim=2)


def _squares(x: Tensor) -> Tensor:
    """Return x xᵀ of ``[G, C, T]``; of the half above the diagonal most is copied from below."""
    half = x.shape[1] // 2
    if half < _WIDE // 2:
        return x @ x.mT
    out = x.new_empty(x.shape[0], x.shape[1], x.shape[1])
    torch.matmul(x[:, half:], x[:, :half].mT, out=out[:, half:, :half])
    out[:, :half, half:] = out[:, half:, :half].mT
    out[:, :half, :half] = _squares(x[:, :half])
    out[:, half:, half:] = _squares(x[:, half:])
    return out
