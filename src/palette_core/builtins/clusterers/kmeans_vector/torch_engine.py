"""Vector k-means in torch, batched over blocks: for points that live on an accelerator.

The same algorithm as on the CPU (see `cpu_engine` and `kernels`), block by block the
same draws. All arithmetic is float64 and direct, so the setting that lets matrix products run
in a reduced precision has no say. Nothing but a few numbers per block visits the host.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from palette_core.builtins.clusterers.kmeans_vector.options import (
    START_TOL,
    SWAP_TOL,
    KMeansVectorOptions,
    sample_size,
    trials_of,
    tries,
)
from palette_core.tensors import squared_distances
from palette_core.tensors.assignment.device import (
    LIMIT,
    DevicePass,
    Problem,
    no_blanks,
    pass_over,
)


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
    step = max(1, LIMIT // (size * trials_of(options.trials, n_entries)))
    tables = []
    for at in range(0, blocks, step):
        index = range(at, min(blocks, at + step))
        weights = None if importance is None else no_blanks(importance[at : at + step])
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


# --- Lloyd's iteration --------------------------------------------------------------------------


def _lloyd(
    problem: Problem, table: Tensor, max_iter: int, tol: float
) -> tuple[Tensor, Tensor, DevicePass]:
    """Alternate until every block is done; return tables, their costs, and the last pass.

    The moves are those of `kernels.advance`, for all blocks at once. A block that is
    done does not move again, so it does not matter which others share its batch.
    """
    means = table.clone()
    last = table.new_full((table.shape[0],), torch.inf)
    moves = torch.zeros_like(last)
    stopped = torch.zeros_like(last, dtype=torch.bool)
    while True:
        found = pass_over(problem, table)
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
        found = pass_over(problem, table)
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


def _split(table: Tensor, found: DevicePass, away: Tensor, split: Tensor, use: Tensor) -> Tensor:
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
    """Draw a lightweight coreset of each block, as `sampling.coreset` does."""
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
    trials = trials_of(options.trials, n_entries)
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
        lows = squared_distances(points, picks, weights)
        if k:
            lows = torch.minimum(lows, costs[..., None])
        best = lows.sum(dim=1).argmin(dim=1)
        costs = lows.gather(2, best[:, None, None].expand(-1, count, 1)).squeeze(2)
        table[:, k] = picks.gather(1, best[:, None, None].expand(-1, 1, dim)).squeeze(1)
    table, cost, _ = _lloyd(sample, table, options.max_iter, options.tol)
    return table, cost
