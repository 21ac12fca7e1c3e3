"""Normal equations of the entries of all tables, kept from one fit of entries to the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from palette_core._common.threads import map_threads
from palette_core.builtins.clusterers.layerwise import changes
from palette_core.builtins.clusterers.layerwise import entries as entries_of
from palette_core.builtins.clusterers.layerwise import lines as lines_of
from palette_core.builtins.clusterers.layerwise.vectors import LINE

if TYPE_CHECKING:
    from palette_core.builtins.clusterers.layerwise.steps import Matrix

Array = NDArray[Any]
_MOST_KEPT = 1 << 25  # bytes
_FEW = 16  # where one of so many codes has changed or less, changes are added; else all anew
_FEW_OF_LINES = 4  # likewise, of a row with lines
_MOST_ENTRIES = 16  # of a table whose rows have lines


class Sums:
    """A of all tables (see `entries.normal_equations`), and for which codes that is.

    Coordinate descent changes few codes from one fit to the next, and what they change of A costs
    as much less to sum than A.

    The weight is handed in each time: one that holds these sums and is held by them would stay in
    memory until garbage is collected.

    Args:
        matrix: the weight.

    Attributes:
        lines: of the codes that equations were asked for last, see `lines`; None: it keeps none.
    """

    def __init__(self, matrix: Matrix) -> None:
        self._count = len(matrix.colours)
        shape = (self._count, matrix.dim, matrix.entries, matrix.entries)
        # What would take more is summed anew every time.
        self._square = np.empty(shape) if 8 * math.prod(shape) <= _MOST_KEPT else None
        self._codes: Array | None = None  # for which it is
        self.lines: Array | None = None
        if self._square is not None and _may_have_lines(matrix):
            self.lines = np.empty(
                (matrix.w.shape[0], matrix.entries, matrix.w.shape[1]), np.float32
            )
        self._pieces = matrix.pieces if self.lines is None else matrix.large_pieces
        width = matrix.table.shape[1] if self.lines is None else 1
        # The tables that a piece looks into, ascending.
        self._used = [np.unique(matrix.table[low:high, :width]) for low, high in self._pieces]

    def begin(self, codes: Array) -> None:
        """Begin with the equations for some codes; where many are others by now, anew."""
        if self._codes is not None:
            changed = np.count_nonzero(self._codes != codes)
            if changed * (_FEW if self.lines is None else _FEW_OF_LINES) > codes.size:
                self._codes = None

    def equations(
        self, matrix: Matrix, grad: Array, codes: Array, batch: Array
    ) -> tuple[Array, Array]:
        """Return A and b of some tables, ``[n, D, K, K]`` and ``[n, D, K]`` float64.

        Args:
            matrix: the weight.
            grad: as in `State`.
            codes: as in `State`.
            batch: ``[n]`` which tables, ascending, all of one colour, once until `end`.
        """
        before, lines = self._codes, () if self.lines is None else (self.lines,)
        if before is None or self._square is None:
            anew = lines_of.sum_lines if lines else entries_of.normal_equations
            square, right = self._added(matrix, anew, (grad, codes, *lines), batch)
        else:
            add = lines_of.change_lines if lines else changes.add_changes
            more, right = self._added(matrix, add, (grad, codes, before, *lines), batch)
            square = self._square[batch] + more
        if self._square is not None:
            self._square[batch] = square
        return square, right

    def end(self, codes: Array | None) -> None:
        """Note for which codes A is by now; None: for none that will be met."""
        self._codes = None if codes is None or self._square is None else codes.copy()

    def _added(
        self,
        matrix: Matrix,
        add: Callable[..., None],
        arrays: tuple[Array, ...],
        batch: Array,
    ) -> tuple[Array, Array]:
        """Return the sums over all pieces of what a kernel adds, the first one made symmetric."""
        shape = (matrix.dim, matrix.entries)
        wanted = np.zeros(self._count, np.bool_)
        wanted[batch] = True

        def one(piece: int) -> tuple[Array, Array, Array]:
            used = self._used[piece]
            own = used[wanted[used]]
            slot = np.zeros(self._count, np.int32)
            slot[own] = np.arange(len(own))
            square = np.zeros((len(own), *shape, matrix.entries))
            right = np.zeros((len(own), *shape))
            if len(own):
                add(
                    *arrays,
                    matrix.group,
                    matrix.share,
                    matrix.h,
                    matrix.table,
                    matrix.factor,
                    matrix.wide,
                    wanted,
                    slot,
                    square,
                    right,
                    *self._pieces[piece],
                )
            return own, square, right

        total = np.zeros((len(batch), *shape, matrix.entries))
        sums = np.zeros((len(batch), *shape))
        for own, square, right in map_threads(one, range(len(self._pieces))):
            at = np.searchsorted(batch, own)
            total[at] += square
            sums[at] += right
        return (total + total.swapaxes(2, 3)) / 2, sums


def _may_have_lines(matrix: Matrix) -> bool:
    """Return whether every row looks into one table, and lines are few and short enough."""
    rows, columns = matrix.w.shape
    return (
        matrix.dim == 1
        and matrix.factor.shape[1] == 1
        and columns >= LINE
        and matrix.entries <= _MOST_ENTRIES
        and 4 * rows * matrix.entries * columns <= _MOST_KEPT
        and bool((matrix.table == matrix.table[:, :1]).all())
    )
