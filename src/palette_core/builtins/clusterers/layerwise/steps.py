"""Codes and entries of look-up tables that make tr(ΔW H ΔWᵀ) small.

The steps that ``gptq`` and ``lnq`` are made of: error feedback column by column, coordinate
descent over codes, and least squares over entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from palette_core._common.threads import map_threads
from palette_core.builtins.clusterers.layerwise import entries as entries_of
from palette_core.builtins.clusterers.layerwise import feedback, kernels, products
from palette_core.builtins.clusterers.layerwise import lines as lines_of
from palette_core.builtins.clusterers.layerwise.factors import Factors
from palette_core.builtins.clusterers.layerwise.sums import Sums
from palette_core.builtins.clusterers.layerwise.tables import Tables, refitted, sort_entries
from palette_core.builtins.clusterers.layerwise.vectors import ROWS
from palette_core.plugins import LutQuantizer

Array = NDArray[Any]
_ROWS = 16  # of the weight in one piece of work
_MANY_ROWS = 64  # where each is done by itself, and the same lines of a matrix serve all
_SUMS_BYTES = 1 << 28  # of normal equations held at once


def pieces_of(count: int, most: int) -> list[tuple[int, int]]:
    """Cut a count into pieces of about ``most``, from and to, that two threads can share evenly."""
    pieces = -(-count // most)
    if pieces == 1:
        return [(0, count)]
    tiles = count / (ROWS * (pieces + pieces % 2))  # in a piece; the rest of one takes longer
    cuts = [_cut(count, ROWS * max(1, size)) for size in (math.ceil(tiles), math.floor(tiles))]
    return min(cuts, key=lambda cut: sum(high - low for low, high in cut[::2]))


def _cut(count: int, step: int) -> list[tuple[int, int]]:
    return [(at, min(count, at + step)) for at in range(0, count, step)]


@dataclass(frozen=True)
class Matrix:
    """A weight as a matrix, and who shares what in it; see the kernels for shapes.

    Attributes:
        w: the weight, ``[M, C]`` float32.
        group: which matrix of H a row uses.
        share: how much a row counts.
        h: symmetric and positive definite.
        table: which table an element looks into, ``[M / D, C]`` int32.
        colours: ``[B]``: of the tables of one colour, every row has at most one.
        component: ``[B]``: tables with one number depend on each other through rows they share.
        factor: ``[M, C / wide]`` float32: what entries are multiplied by.
        wide: columns that share a factor.
        pinned: ``[M / D, C]`` bool: elements whose code stays at the entry that stays zero.
        entries: K, of each table.
        dtype: of the entries when they are stored.
        quantizer: how they are stored, or None.
    """

    w: Array
    group: Array
    share: Array
    h: Array
    table: Array
    factor: Array
    wide: int
    colours: Array
    component: Array
    pinned: Array
    entries: int
    dtype: torch.dtype
    quantizer: LutQuantizer | None

    @property
    def dim(self) -> int:
        """D, rows that share a code."""
        return int(self.w.shape[0] // self.table.shape[0])

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Fixed ranges of strips, from and to, that make a piece of work each."""
        return pieces_of(self.table.shape[0], max(1, _ROWS // self.dim))

    @property
    def large_pieces(self) -> list[tuple[int, int]]:
        """Larger ones, for work in which the same lines of H serve all rows."""
        return pieces_of(self.table.shape[0], max(1, _MANY_ROWS // self.dim))

    @cached_property
    def sums(self) -> Sums:
        """The normal equations of its tables, as far as they are known."""
        return Sums(self)

    def each(self, work: Callable[[int, int], Any]) -> list[Any]:
        """Run ``work(low, high)`` for every piece, on threads; results in order."""
        return map_threads(lambda piece: work(*piece), self.pieces)

    def each_of_many(self, work: Callable[[int, int], Any]) -> None:
        """Do likewise with larger pieces, for work whose results do not depend on them."""
        map_threads(lambda piece: work(*piece), self.large_pieces)


@dataclass(frozen=True)
class Solution:
    """Tables and codes, and what each row of the weight costs with them."""

    tables: Tables
    codes: Array
    costs: Array

    @property
    def cost(self) -> float:
        """tr(ΔW H ΔWᵀ), rows weighted by their share."""
        return float(self.costs.sum())

    def state(self, matrix: Matrix) -> State:
        """Return it with all that can be improved on."""
        return evaluate(matrix, self.tables, self.codes)


@dataclass(frozen=True)
class State(Solution):
    """A solution with ``error = w − ŵ`` and ``grad = error · H``."""

    error: Array
    grad: Array

    def state(self, matrix: Matrix) -> State:
        """Return itself."""
        return self


def evaluate(matrix: Matrix, tables: Tables, codes: Array) -> State:
    """Return the state that tables and codes make."""
    error, grad = np.empty_like(matrix.w), np.empty_like(matrix.w)
    state = State(tables, codes, np.empty(matrix.w.shape[0]), error, grad)
    dim = matrix.dim

    def one(low: int, high: int) -> None:
        kernels.subtract_decoded(
            matrix.w, matrix.table, tables.lut, matrix.factor, matrix.wide, codes, error, low, high
        )
        kernels.multiply(error, matrix.group, matrix.h, grad, low * dim, high * dim)
        kernels.row_costs(error, grad, matrix.share, state.costs, low * dim, high * dim)

    matrix.each_of_many(one)
    return state


def costs_of(matrix: Matrix, tables: Tables, codes: Array) -> Array:
    """Return the costs of the state that tables and codes make, for half of the work."""
    error, half = np.empty_like(matrix.w), np.empty_like(matrix.w)
    found = np.empty(matrix.w.shape[0])
    dim = matrix.dim

    def one(low: int, high: int) -> None:
        kernels.subtract_decoded(
            matrix.w, matrix.table, tables.lut, matrix.factor, matrix.wide, codes, error, low, high
        )
        products.multiply_half(error, matrix.group, matrix.h, half, low * dim, high * dim)
        kernels.row_costs(error, half, matrix.share, found, low * dim, high * dim)

    matrix.each_of_many(one)
    return found


def descend(matrix: Matrix, state: State, sweeps: int) -> int:
    """Improve the codes of ``state`` one by one, in place; returns how many changed."""
    dim = matrix.dim
    gaps = np.full(state.tables.lut.shape[:2], -1, np.float32)

    def one(low: int, high: int) -> int:
        error, grad = state.error, state.grad
        changed = kernels.descend(
            matrix.w,
            error,
            grad,
            matrix.group,
            matrix.share,
            matrix.h,
            matrix.table,
            state.tables.lut,
            matrix.factor,
            matrix.wide,
            matrix.pinned,
            state.codes,
            gaps,
            sweeps,
            low,
            high,
        )
        kernels.row_costs(error, grad, matrix.share, state.costs, low * dim, high * dim)
        return int(changed)

    return sum(matrix.each(one))


def feed_back(matrix: Matrix, factors: Factors, tables: Tables) -> State:
    """Choose all codes for given tables, column by column; see the kernel."""
    codes = np.zeros(matrix.table.shape, np.uint8)
    if tables.zero is not None:
        codes[matrix.pinned] = tables.zero[matrix.table[matrix.pinned]]
    error, grad = np.empty_like(matrix.w), np.empty_like(matrix.w)
    costs = np.empty(matrix.w.shape[0])

    def one(low: int, high: int) -> None:
        feedback.feed_back(
            matrix.w,
            matrix.group,
            matrix.share,
            factors.order,
            factors.feedback,
            factors.pivot,
            matrix.table,
            tables.lut,
            matrix.factor,
            matrix.wide,
            matrix.pinned,
            codes,
            error,
            grad,
            costs,
            low,
            high,
        )

    matrix.each_of_many(one)
    if not factors.exact:
        return evaluate(matrix, tables, codes)
    return State(tables, codes, costs, error, grad)


def refit(matrix: Matrix, state: State) -> State:
    """Give every table the entries that are best for the codes, as they can be stored.

    Tables that share rows are solved one after the other. Error, gradient and cost of the
    result are brought up to date, not computed anew.
    """
    tables = state.tables
    lut = tables.lut
    sums = matrix.sums
    sums.begin(state.codes)
    per_batch = max(1, _SUMS_BYTES // (lut.shape[1] ** 2 * lut.shape[2] * 8))
    error, grad, costs = state.error, state.grad, np.empty_like(state.costs)
    for colour in range(int(matrix.colours.max()) + 1):
        before = tables.lut
        members = np.flatnonzero(matrix.colours == colour)
        for at in range(0, len(members), per_batch):
            batch = members[at : at + per_batch]
            square, right = sums.equations(matrix, grad, state.codes, batch)
            tables = refitted(tables, batch, square, right, matrix.dtype, matrix.quantizer)
        step = tables.lut - before
        fresh = error is state.error
        error, grad = _moved(matrix, state.codes, step, error, grad, costs, fresh=fresh)
    tables, codes = sort_entries(tables, state.codes, matrix.table)
    sums.end(codes if codes is state.codes else None)  # else entries have other numbers by now
    return State(tables, codes, costs, error, grad)


def _moved(
    matrix: Matrix,
    codes: Array,
    step: Array,
    error: Array,
    grad: Array,
    costs: Array,
    *,
    fresh: bool,
) -> tuple[Array, Array]:
    """Return error and gradient when entries have moved by a step, and set costs.

    They are written to unless new ones are asked for, all in one piece of work.
    """
    moved = (step != 0).any(axis=(1, 2))
    new = (np.empty_like(error), np.empty_like(grad)) if fresh else (error, grad)
    table, lines, dim = matrix.table, matrix.sums.lines, matrix.dim

    def one(low: int, high: int) -> None:
        rows = slice(low * dim, high * dim)
        if fresh:
            new[0][rows], new[1][rows] = error[rows], grad[rows]
        if lines is not None:
            lines_of.move_by_lines(table, matrix.factor, codes, step, moved, lines, *new, low, high)
        else:
            shared = (table, matrix.factor, matrix.wide, codes, step, moved)
            entries_of.move_entries(*shared, matrix.group, matrix.h, *new, low, high)
        kernels.row_costs(*new, matrix.share, costs, low * dim, high * dim)

    if lines is not None:
        matrix.each_of_many(one)
    else:
        matrix.each(one)
    return new
