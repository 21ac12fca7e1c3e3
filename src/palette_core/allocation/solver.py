"""The exact multiple-choice knapsack: one candidate per tensor, least loss within a budget.

Lagrangian relaxation gives bounds (Kellerer, Pferschy, Pisinger: Knapsack Problems, 2004, chapter
11); candidates whose reduced cost exceeds the gap cannot be in an optimum and are dropped; dynamic
programming over undominated pairs of size and loss, pruned by the same bounds, decides the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palette_core.errors import AllocationError

Sizes = NDArray[np.int64]
Losses = NDArray[np.float64]

# Sums of n floats of one sign are right to n units of the last place, relative to the whole.
_ULP = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Choices:
    """The candidates of one tensor.

    Attributes:
        sizes: ``[n]`` bits of each, not negative.
        losses: ``[n]`` predicted loss of each, finite.
    """

    sizes: Sizes
    losses: Losses


@dataclass(frozen=True)
class Solution:
    """One candidate per tensor.

    Attributes:
        chosen: index of the candidate of each tensor.
        size: bits of all together.
        loss: predicted loss of all together.
        bound: no choice within the budget has a smaller loss than this (Lagrangian bound).
    """

    chosen: tuple[int, ...]
    size: int
    loss: float
    bound: float


def solve(tensors: Sequence[Choices], budget: int) -> Solution:
    """Choose one candidate per tensor, of the least total loss within ``budget`` bits.

    Of losses that are equal, but for the rounding of sums, the smaller total size is chosen.

    Raises:
        AllocationError: the smallest candidates of all tensors take more than the budget.
    """
    smallest = sum(int(t.sizes.min()) for t in tensors)
    if smallest > budget:
        raise AllocationError(
            f"the smallest candidates together take {smallest} bits, more than the budget of "
            f"{budget}; raise the target, or allow smaller candidates"
        )
    unit = _unit(tensors)
    # Sizes count from the smallest: slope times budget would drown losses next to a large tensor.
    reduced = [Choices(t.sizes - t.sizes.min(), np.ldexp(t.losses, -unit)) for t in tensors]
    room = min(budget - smallest, sum(int(t.sizes.max()) for t in reduced))
    kept = [_undominated(t) for t in reduced]
    slope, bound = _multiplier(reduced, kept, room)
    best = _greedy(reduced, kept, slope, room)
    chosen = _exact(reduced, kept, slope, bound, best, room)
    size = sum(int(t.sizes[i]) for t, i in zip(tensors, chosen, strict=True))
    loss = float(sum(t.losses[i] for t, i in zip(tensors, chosen, strict=True)))
    return Solution(tuple(chosen), size, loss, min(float(np.ldexp(bound, unit)), loss))


def _unit(tensors: Sequence[Choices]) -> int:
    """Return the exponent of a power of two that brings losses to 1 at most."""
    return int(np.frexp(max(float(t.losses.max()) for t in tensors))[1])


def curve(tensors: Sequence[Choices], points: int = 25) -> list[Solution]:
    """Return optimal solutions at budgets spread evenly from the smallest to the largest."""
    low = sum(int(t.sizes.min()) for t in tensors)
    high = sum(int(t.sizes[t.losses == t.losses.min()].min()) for t in tensors)
    budgets = np.unique(np.linspace(low, max(low, high), points).round().astype(np.int64))
    found: list[Solution] = []
    for solution in (solve(tensors, int(b)) for b in budgets):
        if not found or (solution.size > found[-1].size and solution.loss < found[-1].loss):
            found.append(solution)
    return found


def _undominated(tensor: Choices) -> NDArray[np.int64]:
    """Return candidates by rising size and falling loss; others are never needed."""
    order = np.lexsort((tensor.losses, tensor.sizes))
    falling = np.minimum.accumulate(tensor.losses[order])
    first = np.ones(len(order), bool)
    first[1:] = falling[1:] < falling[:-1]
    undominated: NDArray[np.int64] = order[first].astype(np.int64)
    return undominated


def _multiplier(
    tensors: Sequence[Choices], kept: Sequence[NDArray[np.int64]], budget: int
) -> tuple[float, float]:
    """Return the multiplier (loss per bit) of the best Lagrangian bound, and that bound.

    The dual function is concave and piecewise linear; its breakpoints are slopes between
    candidates of one tensor, and its best one is found by bisection over their sorted list.
    """
    slopes = {0.0}
    for tensor, keep in zip(tensors, kept, strict=True):
        size, loss = tensor.sizes[keep].astype(np.float64), tensor.losses[keep]
        for i in range(len(keep)):
            slopes.update(((loss[i] - loss[i + 1 :]) / (size[i + 1 :] - size[i])).tolist())
    ordered = sorted(slopes)
    low, high = 0, len(ordered) - 1
    while low < high:  # the smallest multiplier at which the relaxed choice fits
        middle = (low + high) // 2
        if _relaxed_size(tensors, kept, ordered[middle]) <= budget:
            high = middle
        else:
            low = middle + 1
    values = [_dual(tensors, kept, s, budget) for s in ordered[max(0, low - 1) : low + 2]]
    best = int(np.argmax(values))
    return ordered[max(0, low - 1) + best], values[best]


def _relaxed_size(
    tensors: Sequence[Choices], kept: Sequence[NDArray[np.int64]], slope: float
) -> int:
    """Return the size of the smallest choice that minimises loss + slope · size."""
    total = 0
    for tensor, keep in zip(tensors, kept, strict=True):
        cost = tensor.losses[keep] + slope * tensor.sizes[keep]
        total += int(tensor.sizes[keep][int(np.argmin(cost))])
    return total


def _dual(
    tensors: Sequence[Choices], kept: Sequence[NDArray[np.int64]], slope: float, budget: int
) -> float:
    return -slope * budget + sum(
        float((t.losses[k] + slope * t.sizes[k]).min()) for t, k in zip(tensors, kept, strict=True)
    )


def _greedy(
    tensors: Sequence[Choices], kept: Sequence[NDArray[np.int64]], slope: float, budget: int
) -> list[int]:
    """Return a choice that fits: the relaxed one, improved where bits are left.

    Where the relaxed choice is too large, tensors fall back to smaller candidates, the cheapest
    loss per bit first.
    """
    at = [
        int(np.argmin(t.losses[k] + slope * t.sizes[k])) for t, k in zip(tensors, kept, strict=True)
    ]

    def move(step: int) -> list[tuple[float, int, int]]:
        moves = []
        for i, (tensor, keep) in enumerate(zip(tensors, kept, strict=True)):
            to = at[i] + step
            if 0 <= to < len(keep):
                bits = int(tensor.sizes[keep[to]] - tensor.sizes[keep[at[i]]])
                loss = float(tensor.losses[keep[at[i]]] - tensor.losses[keep[to]])
                moves.append((loss / bits, i, bits))
        return moves

    size = sum(int(t.sizes[k[a]]) for t, k, a in zip(tensors, kept, at, strict=True))
    while size > budget:
        _, i, bits = min(move(-1))
        at[i] -= 1
        size += bits
    while fitting := [m for m in move(+1) if size + m[2] <= budget]:
        _, i, bits = max(fitting)
        at[i] += 1
        size += bits
    return [int(k[a]) for k, a in zip(kept, at, strict=True)]


def _exact(
    tensors: Sequence[Choices],
    kept: Sequence[NDArray[np.int64]],
    slope: float,
    bound: float,
    best: list[int],
    budget: int,
) -> list[int]:
    """Return an optimal choice, given a feasible one and a Lagrangian bound."""
    upper = float(sum(t.losses[i] for t, i in zip(tensors, best, strict=True)))
    equal = 2 * len(tensors) * _ULP  # what rounding may make of equal losses, relative to them
    # No choice worth keeping has sums of larger numbers than these.
    slack = equal * upper + 4 * (len(tensors) + 4) * _ULP * (upper + slope * budget)
    live: list[NDArray[np.int64]] = []
    for tensor, keep in zip(tensors, kept, strict=True):
        cost = tensor.losses[keep] + slope * tensor.sizes[keep]
        live.append(keep[bound + (cost - cost.min()) <= upper + slack])
    # Widest spread of sizes first: states are told apart, and pruned, early.
    order = sorted(range(len(tensors)), key=lambda i: -int(np.ptp(tensors[i].sizes[live[i]])))
    rest_size, rest_cost = _remaining(tensors, live, order, slope)
    size = np.zeros(1, np.int64)
    loss = np.zeros(1)
    parents: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for step, i in enumerate(order):
        add = tensors[i].sizes[live[i]]
        sizes = (size[:, None] + add).ravel()
        losses = (loss[:, None] + tensors[i].losses[live[i]]).ravel()
        reach = losses + slope * (sizes - budget) + rest_cost[step + 1]
        alive = np.flatnonzero((sizes + rest_size[step + 1] <= budget) & (reach <= upper + slack))
        alive = alive[np.lexsort((losses[alive], sizes[alive]))]
        falling = np.minimum.accumulate(losses[alive])
        first = np.ones(len(alive), bool)
        first[1:] = falling[1:] < falling[:-1]
        alive = alive[first]
        size, loss = sizes[alive], losses[alive]
        parents.append((alive // len(add), live[i][alive % len(add)]))
    # Losses fall as sizes rise: the smallest of the states that are as good as the last.
    state, chosen = int(np.argmax(loss <= loss[-1] * (1 + equal))), list(best)
    for i, (parent, candidate) in zip(reversed(order), reversed(parents), strict=True):
        chosen[i] = int(candidate[state])
        state = int(parent[state])
    return chosen


def _remaining(
    tensors: Sequence[Choices], live: Sequence[NDArray[np.int64]], order: list[int], slope: float
) -> tuple[list[int], list[float]]:
    """Return, for each step, the least size and the least Lagrangian cost of what is to come."""
    sizes, costs = [0], [0.0]
    for i in reversed(order):
        tensor, keep = tensors[i], live[i]
        sizes.append(sizes[-1] + int(tensor.sizes[keep].min()))
        costs.append(costs[-1] + float((tensor.losses[keep] + slope * tensor.sizes[keep]).min()))
    return sizes[::-1], costs[::-1]
