"""Lloyd's iteration on one block in the computer's memory, by one thread or by several."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from palette_core.builtins.clusterers.kmeans_vector import kernels, lanes
from palette_core.tensors.assignment import kernels as assignment
from palette_core.tensors.assignment.blocks import Block, Workers
from palette_core.tensors.assignment.cpu import Pass

Floats = NDArray[Any]


class Lloyd(Pass):
    """Room for Lloyd's iteration on a block."""

    def __init__(self, block: Block, table: Floats) -> None:
        super().__init__(block, table)
        self._means = table.copy()
        self._state = np.array([np.inf, 0.0])
        elementwise = block.weights.shape[1] == table.shape[1] > 1
        self._in_lanes = not elementwise and table.size <= lanes.MOST
        if self._in_lanes:
            self._counts = np.zeros((block.chunks, len(table)), np.int64)

    def look_around(self, table: Floats) -> None:
        """Find codes, bounds of the second nearest distances, and neighbours of entries."""
        assignment.rank_neighbours(table, self.order, self.gaps)
        self.run(table, known=False)

    def iterate(
        self, table: Floats, max_iter: int, tol: float, workers: Workers | None = None
    ) -> float:
        """Run Lloyd's iteration on ``table``; return the cost with it before its last move."""
        if workers is not None:
            return self._iterate_together(table, max_iter, tol, workers)
        points, weights = self.block.points, self.block.weights
        if self._in_lanes:
            total = lanes.iterate(
                points, weights, table, self.drift, self.codes, self._counts, self.sums,
                self.mass, self.worst, self.totals, self._means, self._state, max_iter, tol,
            )  # fmt: skip
        else:
            total = kernels.iterate(
                points, weights, table, self.order, self.gaps, self.drift, self.codes,
                self.lower, self.sums, self.mass, self.worst, self.totals, self._means,
                self._state, max_iter, tol,
            )  # fmt: skip
        return float(total)

    def _iterate_together(
        self, table: Floats, max_iter: int, tol: float, workers: Workers
    ) -> float:
        """Do so with several threads, step by step the same."""
        total = 0.0
        scale = lanes.scale_of(self.block.points) if self._in_lanes else 1.0
        for turn in range(max_iter):
            if self._in_lanes:
                total = self._pass_in_lanes(table, scale, workers)
            else:
                total = self.run(table, known=turn > 0, workers=workers)
            if kernels.advance(
                self.block.points, table, self._means, self._state, self.sums, self.mass,
                self.worst, self.drift, total, tol,
            ):  # fmt: skip
                break
        if self._in_lanes:
            points, weights = self.block.points, self.block.weights
            self.share(
                lambda first, last: lanes.sum_up(
                    points, weights, self.codes, self._counts, first, last, self.sums, self.mass
                ),
                workers,
            )
            lanes.settle(self.sums, self.mass, table)
        return total

    def _pass_in_lanes(self, table: Floats, scale: float, workers: Workers) -> float:
        points, weights = self.block.points, self.block.weights
        fresh = bool(self._state[1] <= 1.0)

        def part(first: int, last: int) -> None:
            lanes.pass_over(
                points, weights, table, scale, self.codes, self._counts, fresh, first, last,
                self.sums, self.mass, self.totals,
            )  # fmt: skip

        self.share(part, workers)
        lanes.find_worst(points, weights, table, self.codes, self._counts, self.worst)
        return float(sum(self.totals))
