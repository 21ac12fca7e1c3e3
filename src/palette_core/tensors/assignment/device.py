"""One pass over all blocks in torch: for points that live on an accelerator.

All arithmetic is float64 and direct, so the setting that lets matrix products run in a reduced
precision has no say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from palette_core.tensors.nearest import squared_distances

LIMIT = 1 << 23  # distances held at once: 64 MB


@dataclass(frozen=True)
class Problem:
    """Some blocks: ``points`` ``[G, N, D]``, ``weights`` the same or None, ``index`` of each."""

    points: Tensor
    weights: Tensor | None
    index: range


def assign_and_sum(
    points: Tensor, importance: Tensor | None, entries: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes ``[B, N]`` uint8, sums and mass ``[B, K, D]`` and cost ``[B]``, all float64."""
    weights = None if importance is None else no_blanks(importance)
    found = pass_over(Problem(points, weights, range(points.shape[0])), entries)
    return found.codes, found.sums, found.mass, found.cost


def no_blanks(importance: Tensor) -> Tensor:
    """Return the importance, with ones for blocks in which nothing has any."""
    blank = (importance == 0).flatten(1).all(dim=1)
    return torch.where(blank[:, None, None], torch.ones_like(importance), importance)


@dataclass(frozen=True)
class DevicePass:
    """Result of `pass_over`; all but codes and ``worst_at`` float64.

    Attributes:
        codes: ``[G, N]`` uint8, nearest entries.
        sums, mass: ``[G, K, D]``, Σ w x and Σ w of the points of each entry.
        cost: ``[G]``.
        spread: ``[G, K, D]``, cost of each entry's points by coordinate.
        help: ``[G, K]``, what they would cost more at their second nearest entry.
        worst: ``[G]``, largest cost of a point; worst_at: that point.
    """

    codes: Tensor
    sums: Tensor
    mass: Tensor
    cost: Tensor
    spread: Tensor
    help: Tensor
    worst: Tensor
    worst_at: Tensor


def _pieces(problem: Problem, n_entries: int) -> Iterator[tuple[slice, slice]]:
    """Cut blocks and points so that a piece has few enough distances."""
    blocks, count, _ = problem.points.shape
    group = max(1, LIMIT // (count * n_entries))
    step = max(1, LIMIT // (group * n_entries))
    for b in range(0, blocks, group):
        for at in range(0, count, step):
            yield slice(b, b + group), slice(at, at + step)


def pass_over(problem: Problem, table: Tensor) -> DevicePass:
    """Assign every point to its nearest entry of ``table`` ``[G, K, D]`` float64, and add up."""
    blocks, count, dim = problem.points.shape
    entries = table.shape[1]
    room = table.new_zeros((3, blocks, entries, dim))
    found = DevicePass(
        torch.empty((blocks, count), dtype=torch.uint8, device=table.device),
        room[0], room[1], table.new_zeros(blocks), room[2], table.new_zeros((blocks, entries)),
        table.new_full((blocks,), -1.0),
        torch.zeros(blocks, dtype=torch.int64, device=table.device),
    )  # fmt: skip
    for b, n in _pieces(problem, entries):
        points = problem.points[b, n].double()
        weights = None if problem.weights is None else problem.weights[b, n].double()
        costs = squared_distances(points, table[b], weights)
        low, code = costs.min(dim=2)
        owner = torch.zeros_like(costs).scatter_(2, code[..., None], 1.0).transpose(1, 2)
        costs.scatter_(2, code[..., None], torch.inf)
        factor = torch.ones_like(points) if weights is None else weights
        gap = points - table[b].gather(1, code[..., None].expand(-1, -1, dim))
        # Products with a matrix of zeros and ones: unlike scattered additions, always in order.
        found.sums[b] += owner @ (factor * points)
        found.mass[b] += owner @ factor
        found.spread[b] += owner @ (factor * gap.square())
        more = costs.min(dim=2).values - low
        found.help[b] += (owner @ more.nan_to_num(posinf=0.0)[..., None]).squeeze(2)
        found.cost[b] += low.sum(dim=1)
        found.codes[b, n] = code.to(torch.uint8)
        worst, at = low.max(dim=1)
        worse = worst > found.worst[b]
        found.worst_at[b] = torch.where(worse, at + n.start, found.worst_at[b])
        found.worst[b] = torch.where(worse, worst, found.worst[b])
    return found
