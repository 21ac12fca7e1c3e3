"""Sums of x xᵀ over calibration batches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from palette_core.planning import TensorPlan
from palette_core.plugins import Consumption
from palette_core.statistics.activations.matrix_files import MatrixFiles
from palette_core.tensors.input_views import InputView, PartialSums
from palette_core.tensors.moments import InputMoments

_REMEMBERED = 4  # latest products: layers that share an input follow each other


@dataclass
class _Sum:
    view: InputView
    total: Tensor | None = None
    cross: Tensor | None = None
    partial: PartialSums | None = None  # which is yet to be added to both
    vectors: int = 0
    history: list[tuple[int, int | None]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of vectors for each matrix, on average where they came one by one."""
        groups = 1 if self.view.only() is None else self.view.groups()
        return -(-self.vectors // groups)


@dataclass(frozen=True)
class _Product:
    raw: tuple[Tensor, ...]  # held, so that their ids are not given to others
    versions: tuple[int, ...]
    view: InputView
    weights: Tensor | None
    before: tuple[Tensor, ...] | None
    sums: tuple[Tensor, Tensor | None] | PartialSums
    count: int
    serial: int

    def is_of(
        self, what: Consumption, weights: Tensor | None, before: tuple[Tensor, ...] | None
    ) -> bool:
        return (
            len(self.raw) == len(what.raw)
            and all(a is b for a, b in zip(self.raw, what.raw, strict=True))
            and self.versions == tuple(x._version for x in what.raw)
            and self.view == what.view
            and self.weights is weights
            and _same(self.before, before)
        )


def _same(a: tuple[Tensor, ...] | None, b: tuple[Tensor, ...] | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(x is y for x, y in zip(a, b, strict=True))


class Accumulator:
    """Adds up second moments by weight: products in float32, sums in float64, on the CPU.

    Weights that were always multiplied with the same inputs share one result.

    Args:
        folder: keep sums and results in files in a fresh folder inside this one, rather than in
            memory; see `MatrixFiles`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._files = MatrixFiles(folder)
        self._sums: dict[tuple[str, InputView], _Sum] = {}
        self._latest: list[_Product] = []
        self._made: dict[int, Tensor] = {}
        self._serial = itertools.count()

    def add(
        self,
        name: str,
        what: Consumption,
        weights: Tensor | None = None,
        before: tuple[Tensor, ...] | None = None,
    ) -> None:
        """Add what one call multiplies the weight ``name`` with.

        Args:
            name: of the weight.
            what: the call.
            weights: ``[n, T]``: sum one matrix for each of n groups of output channels, input
                vector t counted that often in it.
            before: the input in the unchanged model; then Σ (x_before − x) xᵀ is summed too.
        """
        with torch.autocast("cpu", enabled=False):  # the model may have it on around the call
            product = self._product(what, weights, before)
        sums = self._sums.setdefault((name, what.view), _Sum(what.view))
        only = what.view.only()
        if isinstance(product.sums, PartialSums):
            more = product.sums
            sums.partial = more.copy() if sums.partial is None else sums.partial.plus(more)
        else:
            self._add_matrices(sums, *product.sums, only)
        sums.vectors += product.count
        sums.history.append((product.serial, only))

    def _add_matrices(
        self, sums: _Sum, total: Tensor, cross: Tensor | None, only: int | None
    ) -> None:
        known = self._zeros(total, sums.view) if sums.total is None else sums.total
        sums.total = self._plus(known, total, only)
        if cross is not None:
            # What has no input in the unchanged model has not changed, as far as is known.
            known = self._zeros(cross, sums.view) if sums.cross is None else sums.cross
            sums.cross = self._plus(known, cross, only)

    def _product(
        self, what: Consumption, weights: Tensor | None, before: tuple[Tensor, ...] | None
    ) -> _Product:
        for known in self._latest:
            if known.is_of(what, weights, before):
                return known
        versions = tuple(x._version for x in what.raw)
        made, count = _multiply(what, weights, before)
        product = _Product(
            what.raw, versions, what.view, weights, before, made, count, next(self._serial)
        )
        self._latest = [product, *self._latest[: _REMEMBERED - 1]]
        return product

    def forget_inputs(self) -> None:
        """Let go of the inputs of the last run."""
        self._latest = []

    def _plus(self, total: Tensor, more: Tensor, only: int | None) -> Tensor:
        """Add; what came without weights is the same for every group of outputs."""
        if only is not None:
            total[only] += more[0]
            return total
        if total.shape[0] == 1 and more.shape[0] > 1:
            total = self._files.zeros(tuple(more.shape), np.float64).add_(total)
        return total.add_(more)

    def _zeros(self, like: Tensor, view: InputView) -> Tensor:
        groups = like.shape[0] if view.only() is None else view.groups()
        return self._files.zeros((groups, *like.shape[1:]), np.float64)

    def result(self, plan: TensorPlan) -> InputMoments | None:
        """Return the moments of a weight, ``cross`` aside; None where none came."""
        sums = self._best(plan.name)
        if sums is None:
            return None
        return InputMoments(self._hessian(sums), plan.layout, sums.count, sums.view.rows)

    def cross(self, name: str) -> Tensor | None:
        """Return ``[G, C, C]`` float64, Σ (x_before − x) xᵀ / count."""
        sums = self._best(name)
        if sums is None or sums.cross is None:
            return None
        return sums.cross / max(1, sums.count)

    def _best(self, name: str) -> _Sum | None:
        """Return the sums of the way in which a weight is used mostly; whole matrices first."""
        found = [sums for (owner, _), sums in self._sums.items() if owner == name]
        best = max(found, key=lambda s: (not s.view.is_diagonal, s.count), default=None)
        if best is not None and best.partial is not None:
            self._add_matrices(best, *best.partial.matrices(), None)
            best.partial = None
        return best

    def _hessian(self, sums: _Sum) -> Tensor:
        for other in self._sums.values():
            if other is not sums and other.history == sums.history:
                shared = self._made.get(id(other))
                if shared is not None:
                    return shared
        found = self._made.get(id(sums))
        if found is None:
            assert sums.total is not None
            found = self._files.zeros(tuple(sums.total.shape), np.float32)
            found.copy_(sums.total / max(1, sums.count))
            self._made[id(sums)] = found
        return found


_TALL = 4096  # vectors in one float32 product
_WIDE = 384  # coordinates from which on symmetry saves more than smaller products cost


def _multiply(
    what: Consumption, weights: Tensor | None, before: tuple[Tensor, ...] | None
) -> tuple[tuple[Tensor, Tensor | None] | PartialSums, int]:
    """Return Σ x xᵀ (or Σ x), Σ (x_before − x) xᵀ, and how many vectors there were."""
    view = what.view
    if view.is_diagonal:
        counts = _count(view, what.raw)
        return (counts, None), int(counts.sum())
    gap = None
    if before is not None:
        pairs = zip(before, what.raw, strict=True)
        gap = tuple(b.detach().float() - x.detach().float() for b, x in pairs)
    if weights is None:
        partial = view.partial(what.raw, gap)
        if partial is not None:
            return partial
        made = view.products(what.raw, gap)
        if made is not None:
            return made[:2], made[2]
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
                product = (left if part is None else left * part) @ piece.mT
                cross = _grown(cross, product, into, groups)
        at += x.shape[2]
        count += x.shape[0] * x.shape[2]
    if total is None:
        return (torch.zeros(1, 1, dtype=torch.float64), None), 0
    # Of all matrices together; experts get different numbers of vectors.
    return (total, cross), -(-count // n_groups)


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
