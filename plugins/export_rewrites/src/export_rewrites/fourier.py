"""Fourier transforms as products with matrices of cosines and sines."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from export_rewrites.complex_writer import Writer

aten = torch.ops.aten


def _turned(w: Writer, pair: Any, axis: int, matrix: Tensor) -> Any:
    """Multiply one axis of a pair, whose second part may be None, by a complex matrix [out, in]."""
    like = pair[0]
    rank = like.meta["val"].dim()
    order = [i for i in range(rank) if i != axis % rank] + [axis % rank]
    back = [order.index(i) for i in range(rank)]
    dtype = like.meta["val"].dtype
    cosine, sine = (w.constant(part.mT.to(dtype)) for part in (matrix.real, matrix.imag))

    def by(part: Any, table: fx.Node) -> Any:
        if part is None:
            return None
        moved = w(aten.permute.default, part, order)
        whole = w(aten.clone.default, moved, memory_format=torch.contiguous_format)
        *rows, n = whole.meta["val"].shape
        flat = w(aten.view.default, whole, [math.prod(rows), n])
        shaped = w(aten.view.default, w(aten.mm.default, flat, table), [*rows, matrix.shape[0]])
        return w(aten.permute.default, shaped, back)

    c, d = pair
    real = w.sum(by(c, cosine), by(d, sine), -1)
    return real, w.sum(by(c, sine), by(d, cosine))


def _waves(n: int, sign: int, rows: int | None = None) -> Tensor:
    """Return exp(±2πi j k / n) for j below ``rows`` and k below n, in complex128."""
    j, k = torch.arange(n if rows is None else rows), torch.arange(n)
    angle = 2 * math.pi * sign / n * (j[:, None] * k % n).double()
    return torch.polar(torch.ones_like(angle), angle)


def _factor(normalization: int, sizes: list[int]) -> float:
    """Return what torch multiplies by: nothing, the root, or the number of elements."""
    n = math.prod(sizes)
    return (1.0, 1 / math.sqrt(n), 1 / n)[normalization]


def c2c(w: Writer, a: Any, dim: Any, normalization: int, forward: bool) -> Any:
    """Write a transform of complex numbers."""
    pair = w.parts(a)
    shape = pair[0].meta["val"].shape
    scale = _factor(normalization, [shape[axis] for axis in dim])
    for i, axis in enumerate(dim):
        matrix = _waves(shape[axis], -1 if forward else 1) * (1 if i else scale)
        pair = _turned(w, pair, axis, matrix)
    return pair


def r2c(w: Writer, a: Any, dim: Any, normalization: int, onesided: bool) -> Any:
    """Write a transform of real numbers."""
    shape = a.meta["val"].shape
    pair: Any = (a, None)
    scale = _factor(normalization, [shape[axis] for axis in dim])
    for i, axis in enumerate(reversed(dim)):
        n = shape[axis]
        rows = n // 2 + 1 if onesided and not i else n
        pair = _turned(w, pair, axis, _waves(n, -1, rows) * (1 if i else scale))
    return pair


def c2r(w: Writer, a: Any, dim: Any, normalization: int, last_dim_size: int) -> Any:
    """Write the inverse of a transform of real numbers."""
    pair: Any = w.parts(a)
    shape = [*pair[0].meta["val"].shape]
    sizes = [shape[axis] for axis in dim[:-1]] + [last_dim_size]
    scale = _factor(normalization, sizes)
    for axis in dim[:-1]:
        pair = _turned(w, pair, axis, _waves(shape[axis], 1))
    # Frequencies but the first and, of even sizes, the last stand for two that are conjugates.
    half = last_dim_size // 2 + 1
    often = torch.full((half,), 2.0, dtype=torch.float64)
    often[0] = 1
    if last_dim_size % 2 == 0:
        often[-1] = 1
    matrix = _waves(last_dim_size, 1, half).mT * often * scale
    if half != shape[dim[-1]]:
        pair = tuple(w(aten.slice.Tensor, part, dim[-1], 0, half) for part in pair)
    return _turned(w, pair, dim[-1], matrix)[0]
