"""The algorithms ``gptq`` and ``lnq``, put together from the steps of `steps`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from palette_core.builtins.clusterers.layerwise.factors import factorize
from palette_core.builtins.clusterers.layerwise.steps import (
    Matrix,
    Solution,
    State,
    costs_of,
    descend,
    feed_back,
    refit,
)


def better_of(matrix: Matrix, a: Solution, b: State) -> Solution:
    """Return, component by component, the cheaper of two; ``a`` where they are equal."""
    row_component = np.repeat(matrix.component[matrix.table[:, 0]], matrix.dim)
    count = int(matrix.component.max()) + 1
    cost_a = np.bincount(row_component, a.costs, count)
    cost_b = np.bincount(row_component, b.costs, count)
    take = cost_b < cost_a
    if not take.any():
        return a
    if take.all():
        return b
    rows = take[row_component]
    strips = rows[:: matrix.dim]
    whole = a.state(matrix)
    return State(
        a.tables.where(take[matrix.component], b.tables),
        np.where(strips[:, None], b.codes, a.codes),
        np.where(rows, b.costs, a.costs),
        np.where(rows[:, None], b.error, whole.error),
        np.where(rows[:, None], b.grad, whole.grad),
    )


def gptq(matrix: Matrix, start: Solution, *, act_order: bool, refits: int) -> Solution:
    """Return the best of ``start`` and error feedback, its tables refitted ``refits`` times."""
    strip_in_one_group = bool(
        (matrix.group[:: matrix.dim] == matrix.group[matrix.dim - 1 :: matrix.dim]).all()
    )
    factors = factorize(matrix.h, act_order=act_order and strip_in_one_group)
    best: Solution = start
    tables = start.tables
    for turn in range(refits + 1):
        state = feed_back(matrix, factors, tables)
        best = better_of(matrix, best, state)
        if turn < refits:
            state = refit(matrix, state)
            tables = state.tables
            best = better_of(matrix, best, state)
    return best


def lnq(matrix: Matrix, start: Solution, *, rounds: int, sweeps: int, tolerance: float) -> Solution:
    """Return what coordinate descent and least squares in turns make of ``start``."""
    first = start.state(matrix)
    state = replace(
        first,
        codes=first.codes.copy(),
        costs=first.costs.copy(),
        error=first.error.copy(),
        grad=first.grad.copy(),
    )
    for _ in range(rounds):
        before = state.cost
        descend(matrix, state, sweeps)
        state = refit(matrix, state)
        if not before - state.cost > tolerance * before:
            break
    descend(matrix, state, sweeps)
    # Computed anew: the running sums have lost some digits.
    anew = costs_of(matrix, state.tables, state.codes)
    return better_of(matrix, first, replace(state, costs=anew))
