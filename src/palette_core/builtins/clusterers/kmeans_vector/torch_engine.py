"""Vector k-means in torch, batched over blocks: for points that live on an accelerator.

The same algorithm as on the CPU (see `_vector_cpu` and `_vector_kernels`), block by block the
same draws. All arithmetic is float64 and direct, so the setting that lets matrix products run
in a reduced precision has no say. Nothing but a few numbers per block visits the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from palette_core.builtins.clusterers.kmeans_vector.options import (
    START_TOL,
    SWAP_TOL,
    KMeansVectorOptions,
    sample_size,
    tries,
)

_LIMIT = 1 << 23  # distances held at once: 64 MB


@dataclass(frozen=True)
class Problem:
    """Some blocks: ``points`` ``[G, N, D]``, ``weights`` the same or None, ``index`` of each."""

    points: Tensor
    weights: Tensor | None
    index: range


def fit_tables(
    points: Tensor,
    importance: Tensor | None,
    n_entries: int,
    seed: int,
    options: KMeansVectorOptions,
) -> Tensor:
    """Return ``[B, K, D]`` float64 tables for points ``[B, N, D]``, on their device."""
    blocks, count, _ = points.shape
    size = min(count, sample_size(n_entries))
    step = max(1, _LIMIT // (size * (2 + int(math.log(n_entries)))))
    tables = []
    for at in range(0, blocks, step):
        index = range(at, min(blocks, at + step))
        weights = None if importance is None else _no_blanks(importance[at : at + step])
        group = Problem(points[at : at + step], weights, index)
        sample = _sample(group, n_entries, seed)
        # On a sample a start need not run to the end: it is to tell which is the best.
        tol = max(options.tol, START_TOL) if size < count else options.tol
        started = options.model_copy(update={"tol": tol})
        table, cost = _start(sample, 0, n_entries, seed, started)
        for restart in range(1, tries(options.restarts, size, n_entries)):
            other, other_cost = _start(sample, restart, n_entries, seed, started)
            table = torch.where((other_cost < cost)[:, None, None], other, table)
            cost = torch.minimum(cost, other_cost)
        table = _swap(sample, table, options)
        tables.append(_lloyd(group, table, options.max_iter, options.tol)[0])
    return torch.cat(tables)


def assign_and_sum(
    points: Tensor, importance: Tensor | None, entries: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes ``[B, N]`` uint8, sums and mass ``[B, K, D]`` and cost ``[B]``, all float64."""
    weights = None if importance is None else _no_blanks(importance)
    found = _pass(Problem(points, weights, range(points.shape[0])), entries)
    return found.codes, found.sums, found.mass, found.cost


def _no_blanks(importance: Tensor) -> Tensor:
    """Return the importance, with ones for blocks in which nothing has any."""
    blank = (importance == 0).flatten(1).all(dim=1)
    return torch.where(blank[:, None, None], torch.ones_like(importance), importance)


# --- one pass -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pass:
    codes: Tensor  # [G, N] uint8
    sums: Tensor  # [G, K, D]
    mass: Tensor  # [G, K, D]
    cost: Tensor  # [G]
    spread: Tensor  # [G, K, D] cost of each entry's points by coordinate
    help: Tensor  # [G, K] what they would cost more at their second nearest entry
    worst: Tensor  # [G] largest cost of a point
    worst_at: Tensor  # [G] that point


def _costs(points: Tensor, weights: Tensor | None, table: Tensor) -> Tensor:
    """Return ``[G, n, K]`` weighted squared distances."""
    total = points.new_zeros((*points.shape[:2], table.shape[1]))
    for d in range(points.shape[2]):
        gap = points[..., d, None] - table[:, None, :, d]
        gap.square_()
        if weights is not None:
            gap *= weights[..., d, None]
        total += gap
    return total


def _pieces(problem: Problem, n_entries: int) -> Iterator[tuple[slice, slice]]:
    """Cut blocks and points so that a piece has few enough distances."""
    blocks, count, _ = problem.points.shape
    group = max(1, _LIMIT // (count * n_entries))
    step = max(1, _LIMIT // (group * n_entries))
    for b in range(0, blocks, group):
        for at in range(0, count, step):
            yield slice(b, b + group), slice(at, at + step)


def _pass(problem: Problem, table: Tensor) -> _Pass:
    blocks, count, dim = problem.points.shape
    entries = table.shape[1]
    room = table.new_zeros((3, blocks, entries, dim))
    found = _Pass(
        torch.empty((blocks, count), dtype=torch.uint8, device=table.device),
        room[0], room[1], table.new_zeros(blocks), room[2], table.new_zeros((blocks, entries)),
        table.new_full((blocks,), -1.0),
        torch.zeros(blocks, dtype=torch.int64, device=table.device),
    )  # fmt: skip
    for b, n in _pieces(problem, entries):
        points = problem.points[b, n].double()
        weights = None if problem.weights is None else problem.weights[b, n].double()
        costs = _costs(points, weights, table[b])
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


# --- Lloyd's iteration --------------------------------------------------------------------------


def _lloyd(
    problem: Problem, table: Tensor, max_iter: int, tol: float
) -> tuple[Tensor, Tensor, _Pass]:
    """Alternate until every block is done; return tables, their costs, and the last pass.

    The moves are those of `_vector_kernels.advance`, for all blocks at once. A block that is
    done does not move again, so it does not matter which others share its batch.
    """
    means = table.clone()
    last = table.new_full((table.shape[0],), torch.inf)
    moves = torch.zeros_like(last)
    stopped = torch.zeros_like(last, dtype=torch.bool)
    while True:
        found = _pass(problem, table)
        max_iter -= 1
        moves = torch.where(found.cost > last, 0.0, moves)
        fall = last - found.cost
        done = (fall >= 0) & (fall <= tol * found.cost)
        share = torch.where(done, 0.0, moves / (moves + 3))[:, None, None]
        weighed = found.mass > 0
        mean = torch.where(weighed, found.sums / torch.where(weighed, found.mass, 1.0), table)
        place = torch.where(weighed, mean + share * (mean - means), table)
        mean = torch.where(weighed, mean, means)
        # One entry without points at a time goes to the worst-served one.
        spare = (found.mass.sum(dim=2) <= 0).to(torch.uint8)
        move = (spare.amax(dim=1) > 0) & (found.worst > 0)
        rows = torch.arange(table.shape[0], device=table.device)
        here = problem.points[rows, found.worst_at].double()[:, None]
        chosen = torch.zeros_like(spare, dtype=torch.bool)
        chosen = chosen.scatter(1, spare.argmax(dim=1, keepdim=True), True) & move[:, None]
        place = torch.where(chosen[..., None], here, place)
        mean = torch.where(chosen[..., None], here, mean)
        moves = torch.where(move, 0.0, moves + 1)
        table = torch.where(stopped[:, None, None], table, place)
        means = torch.where(stopped[:, None, None], means, mean)
        last = torch.where(stopped, last, found.cost)
        stopped = stopped | (done & ~move)
        if max_iter <= 0 or bool(stopped.all()):
            return table, last, found


def _swap(problem: Problem, table: Tensor, options: KMeansVectorOptions) -> Tensor:
    """Move entries that help little to where points are served worst, while the cost falls."""
    entries = table.shape[1]
    wanted = torch.full_like(table[:, 0, 0], entries // 4, dtype=torch.int64)
    table, cost, _ = _lloyd(problem, table, options.max_iter, options.tol)
    for _ in range(options.swaps):
        if not bool((wanted > 0).any()):
            break
        found = _pass(problem, table)
        away = found.help.argsort(dim=1, stable=True)
        costs = found.spread.sum(dim=2)
        rank = torch.arange(entries, device=table.device)
        goes = torch.zeros_like(costs, dtype=torch.bool)
        goes.scatter_(1, away, rank < wanted[:, None])
        split = torch.where(goes, -1.0, costs).argsort(dim=1, descending=True, stable=True)
        trial = _split(table, found, away, split, rank < wanted[:, None])
        tol = max(options.tol, SWAP_TOL)
        trial, trial_cost, _ = _lloyd(problem, trial, options.max_iter, tol)
        better = (trial_cost < cost * (1 - SWAP_TOL)) & (wanted > 0)
        table = torch.where(better[:, None, None], trial, table)
        cost = torch.where(better, trial_cost, cost)
        wanted = torch.where(better, wanted, wanted // 2)
    return table


def _split(table: Tensor, found: _Pass, away: Tensor, split: Tensor, use: Tensor) -> Tensor:
    """Put the first entries of ``away`` beside the first of ``split`` where ``use`` holds."""
    dim = table.shape[2]
    wide = split[..., None].expand(-1, -1, dim)
    place = table.gather(1, wide)
    spread, mass = found.spread.gather(1, wide), found.mass.gather(1, wide)
    most = spread.argmax(dim=2, keepdim=True)
    variance = spread.gather(2, most) / mass.gather(2, most)
    half = (0.75 * variance).sqrt().nan_to_num(0.0, 0.0, 0.0)
    shift = torch.zeros_like(place).scatter_(2, most, half) * use[..., None]
    table = table.scatter(1, wide, place - shift)
    target = torch.where(use[..., None], place + shift, table.gather(1, _wide(away, dim)))
    return table.scatter(1, _wide(away, dim), target)


def _wide(index: Tensor, dim: int) -> Tensor:
    return index[..., None].expand(-1, -1, dim)


# --- seeding ------------------------------------------------------------------------------------


def _sample(problem: Problem, n_entries: int, seed: int) -> Problem:
    """Draw a lightweight coreset of each block, as `_vector_seeding.coreset` does."""
    _, count, dim = problem.points.shape
    size = sample_size(n_entries)
    if count <= size:
        return problem
    points = problem.points.double()
    weights = torch.ones_like(points) if problem.weights is None else problem.weights.double()
    mass = weights.sum(dim=1, keepdim=True)
    safe = torch.where(mass > 0, mass, 1.0)
    mean = (weights * points).sum(dim=1, keepdim=True) / safe
    cost = (weights * (points - mean).square()).sum(dim=2)
    spread = cost.sum(dim=1, keepdim=True)
    share = weights.sum(dim=2) / mass.sum(dim=2)
    share = torch.where(spread > 0, 0.5 * share + 0.5 * cost / spread, share)
    draws = [np.sort(np.random.default_rng([seed, b, 0]).random(size)) for b in problem.index]
    goal = torch.from_numpy(np.stack(draws)).to(points.device)
    chosen = torch.searchsorted(share.cumsum(dim=1), goal, right=True).clamp(max=count - 1)
    scale = 1.0 / share.gather(1, chosen).clamp(min=torch.finfo(torch.float64).tiny)
    at = _wide(chosen, dim)
    picked = weights.gather(1, at) * scale[..., None]
    picked = picked / picked.flatten(1).amax(dim=1)[:, None, None]
    return Problem(points.gather(1, at), picked, problem.index)


def _start(
    sample: Problem, restart: int, n_entries: int, seed: int, options: KMeansVectorOptions
) -> tuple[Tensor, Tensor]:
    """Seed the sample by greedy k-means++ and run Lloyd's iteration."""
    points = sample.points.double()
    blocks, count, dim = points.shape
    trials = 2 + int(math.log(n_entries))
    drawn = [
        np.random.default_rng([seed, b, 1 + restart]).random((n_entries, trials))
        for b in sample.index
    ]
    draws = torch.from_numpy(np.stack(drawn)).to(points.device)
    weights = None if sample.weights is None else sample.weights.double()
    costs = points.new_ones((blocks, count)) if weights is None else weights.sum(dim=2)
    table = points.new_empty((blocks, n_entries, dim))
    for k in range(n_entries):
        running = costs.cumsum(dim=1)
        goal = draws[:, k, : trials if k else 1] * running[:, -1:]
        at = torch.searchsorted(running, goal.contiguous(), right=True).clamp(max=count - 1)
        picks = points.gather(1, _wide(at, dim))
        lows = _costs(points, weights, picks)
        if k:
            lows = torch.minimum(lows, costs[..., None])
        best = lows.sum(dim=1).argmin(dim=1)
        costs = lows.gather(2, best[:, None, None].expand(-1, count, 1)).squeeze(2)
        table[:, k] = picks.gather(1, best[:, None, None].expand(-1, 1, dim)).squeeze(1)
    table, cost, _ = _lloyd(sample, table, options.max_iter, options.tol)
    return table, cost
