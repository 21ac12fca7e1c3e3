"""Sums of products of input vectors, in float32 over some thousand vectors at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from palette_core._common.scratch import scratch

_TALL = 4096  # vectors in one float32 product
_MOST = 8192  # vectors in one float32 sum
_WIDE = 384  # rows of a product with itself, from which on a quarter of it is made at once
_STRIP = 64  # rows of a smaller one that are made at once, up to its diagonal


class Products(NamedTuple):
    """Sums of products of input vectors x, and d = x_before − x.

    Attributes:
        total: Σ x xᵀ, ``[G, C, C]``, or Σ x, ``[G, C]``.
        cross: Σ d xᵀ, ``[G, C, C]``, or None.
        moved: Σ W d xᵀ, ``[G, R, C]``, or None.
        aimed: Σ W x_before xᵀ, ``[G, R, C]``, or None.
    """

    total: Tensor
    cross: Tensor | None = None
    moved: Tensor | None = None
    aimed: Tensor | None = None


class Running:
    """Sums that products are added to as they are made, which costs nothing beside them.

    Args:
        pass_on: gets the sums, float32, whenever they are of so many vectors that what has come
            is to be added up in float64, and at a `flush`.
    """

    def __init__(self, pass_on: Callable[[Products], None]) -> None:
        self._pass_on = pass_on
        self._total: Tensor | None = None
        self._cross: Tensor | None = None
        self._moved: Tensor | None = None
        self._aimed: Tensor | None = None
        self._counts: list[int] = []  # of vectors, by matrix

    def add(
        self,
        x: Tensor,
        first: int,
        groups: int,
        weights: Tensor | None = None,
        before: Tensor | None = None,
        through: Tensor | None = None,
        outputs: Tensor | None = None,
    ) -> None:
        """Add x xᵀ, and what belongs to it.

        Args:
            x: ``[G', C, T]`` float32, vectors of the matrices from the first one on.
            first: the first matrix.
            groups: G, how many matrices there are.
            weights: ``[G, T]``: how much each vector counts; G' is 1 then.
            before: like x, what x was: add d xᵀ, d = before − x.
            through: ``[G', R, C]`` float32, W: add W d xᵀ instead.
            outputs: ``[G', R, T]`` float32, W x_before: add W x_before xᵀ.
        """
        held = groups if weights is not None else x.shape[0]
        for low in range(0, x.shape[2], _TALL):
            piece = x[:, :, low : low + _TALL]
            self._make_room(first, held, groups, piece)
            assert self._total is not None
            part = None if weights is None else weights[:, None, low : low + _TALL]
            into = self._total[first : first + held]
            if part is None:
                _add_squares(into, piece)
            else:
                _add(into, piece * part, piece)
            if before is not None:
                other = difference("gap", before[:, :, low : low + _TALL], piece)
                if through is not None:
                    other = through @ other
                into = self._beside(other, groups, moved=through is not None)
                _add(into[first : first + held], other if part is None else other * part, piece)
            if outputs is not None:
                if self._aimed is None:
                    self._aimed = x.new_zeros(groups, outputs.shape[1], x.shape[1])
                _add(self._aimed[first : first + held], outputs[:, :, low : low + _TALL], piece)

    def add_moved(self, moved: Tensor) -> None:
        """Add W d xᵀ ``[G, R, C]`` that was made elsewhere."""
        self._moved = moved if self._moved is None else self._moved + moved

    def flush(self) -> None:
        """Pass on what has come."""
        if self._total is not None:
            _mirror(self._total)
            self._pass_on(Products(self._total, self._cross, self._moved, self._aimed))
        self._total = self._cross = self._moved = self._aimed = None
        self._counts = []

    def _make_room(self, first: int, held: int, groups: int, piece: Tensor) -> None:
        more = piece.shape[2]
        if any(count + more > _MOST for count in self._counts[first : first + held] if count):
            self.flush()
        if self._total is None:
            self._total = piece.new_zeros(groups, piece.shape[1], piece.shape[1])
            self._counts = [0] * groups
        for group in range(first, first + held):
            self._counts[group] += more

    def _beside(self, like: Tensor, groups: int, *, moved: bool) -> Tensor:
        known = self._moved if moved else self._cross
        if known is None:
            assert self._total is not None
            known = like.new_zeros(groups, like.shape[1], self._total.shape[2])
            self._moved, self._cross = (known, self._cross) if moved else (self._moved, known)
        return known


def _add(into: Tensor, left: Tensor, x: Tensor) -> None:
    into.baddbmm_(left, x.mT.expand(left.shape[0], -1, -1))


def _add_squares(into: Tensor, x: Tensor) -> None:
    """Add x xᵀ of ``[G, C, T]``, of which little above the diagonal is made."""
    size = x.shape[1]
    if size <= _WIDE:
        for low in range(0, size, _STRIP):
            high = low + _STRIP
            into[:, low:high, :high].baddbmm_(x[:, low:high], x[:, :high].mT)
        return
    half = -(-size // (2 * _STRIP)) * _STRIP  # whole strips, as `_mirror` copies them
    into[:, half:, :half].baddbmm_(x[:, half:], x[:, :half].mT)
    _add_squares(into[:, :half, :half], x[:, :half])
    _add_squares(into[:, half:, half:], x[:, half:])


def _mirror(total: Tensor) -> None:
    for low in range(_STRIP, total.shape[1], _STRIP):
        high = low + _STRIP
        total[:, :low, low:high] = total[:, low:high, :low].mT


def difference(name: str, a: Tensor, b: Tensor) -> Tensor:
    """Return a − b in float32 on the CPU, good until the next call with this name.

    It lies as b does: then all three are read in order.
    """
    strides = torch.empty_like(b, device="meta").stride()
    flat = torch.from_numpy(scratch(name, (b.numel(),), np.float32))
    return torch.sub(a.detach(), b.detach(), out=flat.as_strided(b.shape, strides))
