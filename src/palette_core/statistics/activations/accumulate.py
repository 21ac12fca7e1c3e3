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
from palette_core.statistics.activations.multiplying import multiply
from palette_core.statistics.activations.running import Products, Running
from palette_core.tensors.input_views import InputView, PartialSums
from palette_core.tensors.moments import InputMoments

_REMEMBERED = 4  # latest products: layers that share an input follow each other


@dataclass
class _Sum:
    view: InputView
    total: Tensor | None = None
    cross: Tensor | None = None
    moved: Tensor | None = None
    aimed: Tensor | None = None
    partial: PartialSums | None = None  # which is yet to be added to the first two
    running: Running | None = None  # likewise, to the first four
    vectors: int = 0
    history: list[tuple[int, int | None]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of vectors for each matrix, on average where they came one by one."""
        groups = 1 if self.view.only() is None else self.view.groups()
        return -(-self.vectors // groups)


class Gap:
    """Products of what inputs have moved by, d = x_before − x, and inputs, in float64.

    Attributes:
        cross: ``[G, C, C]``, Σ d xᵀ / count, or None.
        moved: ``[G, R, C]``, Σ W d xᵀ / count, or None: what of the inputs was multiplied with the
            weight at once; to be added to W ``cross``.
        aimed: ``[G, R, C]``, Σ W x_before xᵀ / count, in place of both, or None.
    """

    def __init__(
        self,
        cross: Tensor | None,
        moved: Tensor | None,
        count: int,
        aimed: Tensor | None = None,
    ) -> None:
        self.cross = None if cross is None else cross / max(1, count)
        self.moved = None if moved is None else moved / max(1, count)
        self.aimed = None if aimed is None else aimed / max(1, count)


@dataclass(frozen=True)
class _Product:
    raw: tuple[Tensor, ...]  # held, so that their ids are not given to others
    versions: tuple[int, ...]
    view: InputView
    weights: Tensor | None
    before: tuple[Tensor, ...] | None
    sums: Products | PartialSums | None
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
        narrow: plan and value of a weight that shares its inputs with no other one. Where it has
            few rows, what became of inputs is multiplied with them first: see `gap`.
    """

    def __init__(
        self, folder: Path | None = None, narrow: tuple[TensorPlan, Tensor] | None = None
    ) -> None:
        self._narrow = narrow
        self._files = MatrixFiles(folder)
        self._sums: dict[tuple[str, InputView], _Sum] = {}
        self._matrices: dict[InputView, Tensor | None] = {}
        self._latest: list[_Product] = []
        self._made: dict[int, Tensor] = {}
        self._gaps: list[tuple[_Sum, Gap]] = []
        self._serial = itertools.count()

    def add(
        self,
        name: str,
        what: Consumption,
        weights: Tensor | None = None,
        before: tuple[Tensor, ...] | None = None,
        outputs: Tensor | None = None,
    ) -> None:
        """Add what one call multiplies the weight ``name`` with.

        Args:
            name: of the weight.
            what: the call.
            weights: ``[n, T]``: sum one matrix for each of n groups of output channels, input
                vector t counted that often in it.
            before: the input in the unchanged model; then what `gap` needs is summed too.
            outputs: what the weight makes of that, in its place, see `Given`.
        """
        sums = self._sums.setdefault((name, what.view), _Sum(what.view))
        only = what.view.only()
        running = None
        if self._narrow is not None and self._narrow[0].name == name and only is None:
            running = self._running(sums) if weights is None else None
        with torch.autocast("cpu", enabled=False):  # the model may have it on around the call
            product = self._product(name, what, weights, before, running, outputs)
        more = product.sums
        if isinstance(more, PartialSums):
            sums.partial = more.copy() if sums.partial is None else sums.partial.plus(more)
        elif more is not None:
            self._add_matrices(sums, more, only)
        sums.vectors += product.count
        sums.history.append((product.serial, only))

    def _running(self, sums: _Sum) -> Running:
        """Return what a weight whose inputs are its own is summed by."""
        if sums.running is None:
            sums.running = Running(lambda made: self._add_matrices(sums, made, None))
        return sums.running

    def _add_matrices(self, sums: _Sum, made: Products, only: int | None) -> None:
        sums.total = self._sum(sums.total, made.total, sums.view, only)
        # What has no input in the unchanged model has not changed, as far as is known.
        if made.cross is not None:
            sums.cross = self._sum(sums.cross, made.cross, sums.view, only)
        if made.moved is not None:
            sums.moved = self._sum(sums.moved, made.moved, sums.view, only)
        if made.aimed is not None:
            sums.aimed = self._sum(sums.aimed, made.aimed, sums.view, only)

    def _product(
        self,
        name: str,
        what: Consumption,
        weights: Tensor | None,
        before: tuple[Tensor, ...] | None,
        running: Running | None,
        outputs: Tensor | None,
    ) -> _Product:
        for known in self._latest:
            if running is None and outputs is None and known.is_of(what, weights, before):
                return known
        versions = tuple(x._version for x in what.raw)
        matrix = None if before is None else self._narrow_matrix(name, what.view)
        made, count = multiply(what, weights, before, matrix, running, outputs)
        product = _Product(
            what.raw, versions, what.view, weights, before, made, count, next(self._serial)
        )
        if running is None and outputs is None:
            self._latest = [product, *self._latest[: _REMEMBERED - 1]]
        return product

    def _narrow_matrix(self, name: str, view: InputView) -> Tensor | None:
        """Return a weight's rows ``[G, R, C]`` float32, where they are few and its inputs its own.

        Two products with R rows then cost less than one of inputs with inputs.
        """
        if self._narrow is None or self._narrow[0].name != name or view.only() is not None:
            return None
        if view not in self._matrices:
            self._matrices[view] = self._matrices_of(*self._narrow, view)
        return self._matrices[view]

    @staticmethod
    def _matrices_of(plan: TensorPlan, weight: Tensor, view: InputView) -> Tensor | None:
        if view.is_diagonal or weight.shape[0] % view.groups():
            return None
        blank = InputMoments(torch.empty(view.groups(), 0), plan.layout, 0, view.rows)
        matrices = blank.to_matrices(weight.detach().cpu().float())
        return matrices if 2 * matrices.shape[1] < matrices.shape[2] else None

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

    def _sum(self, known: Tensor | None, more: Tensor, view: InputView, only: int | None) -> Tensor:
        return self._plus(self._zeros(more, view) if known is None else known, more, only)

    def _zeros(self, like: Tensor, view: InputView) -> Tensor:
        groups = like.shape[0] if view.only() is None else view.groups()
        return self._files.zeros((groups, *like.shape[1:]), np.float64)

    def result(self, plan: TensorPlan) -> InputMoments | None:
        """Return the moments of a weight, ``cross`` aside; None where none came."""
        sums = self._best(plan.name)
        if sums is None:
            return None
        return InputMoments(self._hessian(sums), plan.layout, sums.count, sums.view.rows)

    def gap(self, name: str) -> Gap | None:
        """Return by how much the inputs of a weight have moved; None where they have not.

        Weights that were always multiplied with the same inputs share one.
        """
        sums = self._best(name)
        if sums is None or (sums.cross is None and sums.moved is None and sums.aimed is None):
            return None
        if sums.moved is not None or sums.aimed is not None:
            return Gap(sums.cross, sums.moved, sums.count, sums.aimed)
        for known, gap in self._gaps:
            if known.history == sums.history:
                return gap
        made = Gap(sums.cross, None, sums.count)
        self._gaps.append((sums, made))
        return made

    def _best(self, name: str) -> _Sum | None:
        """Return the sums of the way in which a weight is used mostly; whole matrices first."""
        found = [sums for (owner, _), sums in self._sums.items() if owner == name]
        best = max(found, key=lambda s: (not s.view.is_diagonal, s.count), default=None)
        if best is not None and best.partial is not None:
            self._add_matrices(best, Products(*best.partial.matrices()), None)
            best.partial = None
        if best is not None and best.running is not None:
            best.running.flush()
            best.running = None  # which holds on to this
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
