"""One pass over all blocks, wherever they live: nearest entries, and what moves them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from palette_core.tensors.nearest import pieces

_WIDE = 8  # bytes of an index


@dataclass(frozen=True)
class PassResult:
    """Result of a pass.

    Attributes:
        codes: ``[B, N]`` uint8, nearest entries, the lowest among equals.
        sums: ``[B, K, D]`` float64, Σ w x of the points of each entry.
        mass: ``[B, K, D]`` float64, Σ w of the points of each entry.
        cost: ``[B]`` float64, Σ w (x − c)².
    """

    codes: Tensor
    sums: Tensor
    mass: Tensor
    cost: Tensor

    def means(self, entries: Tensor) -> Tensor:
        """Return the means of each entry's points, ``[B, K, D]``; the entry where it has none."""
        used = self.mass > 0
        return torch.where(used, self.sums / torch.where(used, self.mass, 1.0), entries)

    def rows(self, rows: Tensor) -> PassResult:
        """Return the result of some blocks: ``rows`` are their places, or a mask."""
        return PassResult(self.codes[rows], self.sums[rows], self.mass[rows], self.cost[rows])

    def put(self, rows: Tensor, other: PassResult) -> None:
        """Overwrite the result of some blocks."""
        for mine, its in zip(self._parts(), other._parts(), strict=True):
            mine[rows] = its

    def _parts(self) -> tuple[Tensor, ...]:
        return self.codes, self.sums, self.mass, self.cost


def assign_and_sum(
    points: Tensor, importance: Tensor | None, entries: Tensor, codes: Tensor
) -> PassResult:
    """Assign every point to its nearest entry.

    Args:
        points: ``[B, N, D]`` floating.
        importance: ``[B, N, D]`` elementwise, or None.
        entries: ``[B, K, D]`` float64, as they will decode.
        codes: ``[B, N]`` uint8, a good guess; not written to.
    """
    if points.device.type != "cpu":
        from palette_core.tensors.assignment import device

        return PassResult(*device.assign_and_sum(points, importance, entries))
    from palette_core.tensors.assignment import cpu  # numba loads slowly
    from palette_core.tensors.assignment.blocks import Workers, as_floats, make_blocks
    from palette_core.tensors.assignment.kernels import CHUNK

    if points.shape[1] <= CHUNK:
        weights = None if importance is None else importance.detach().float().contiguous().numpy()
        found = cpu.pass_over_small(as_floats(points), weights, entries.contiguous().numpy())
        return PassResult(*(torch.from_numpy(part) for part in found))
    blocks = make_blocks(points, importance)
    guess = codes.cpu().numpy().copy()
    table = entries.cpu().numpy()
    sums, mass = np.empty_like(table), np.empty_like(table)
    cost = np.empty(len(blocks))
    with Workers() as workers:
        cpu.pass_over(blocks, table, guess, sums, mass, cost, workers)
    return PassResult(*(torch.from_numpy(part) for part in (guess, sums, mass, cost)))


def metric(importance: Tensor | None) -> Tensor | None:
    """Return importance by which to tell near from far: points without any get ones.

    They pull no entry, but are still to be given the one nearest to them.
    """
    if importance is None:
        return None
    blank = (importance == 0).all(dim=2, keepdim=True)
    return importance.masked_fill(blank, 1.0) if bool(blank.any()) else importance


def tidy_entries(entries: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put used entries in the order of their coordinates, and spare ones last as repeats.

    Args:
        entries: ``[B, K, D]``.
        codes: ``[B, N]`` uint8; entries without a code are spare.

    Returns:
        the entries ordered by first coordinate, then second, …; ``[B, K]`` which entry each of
        them was; the codes to match.
    """
    blocks, count, dim = entries.shape
    used = torch.zeros((blocks, count), dtype=torch.uint8, device=codes.device)
    # A few codes at a time: look-ups take indices of eight bytes.
    some = pieces(blocks, codes.shape[1], _WIDE)
    for b, n in some:
        used[b].scatter_(1, codes[b, n].long(), 1)
    order = torch.arange(count, device=codes.device).expand(blocks, -1)
    for d in reversed(range(dim)):
        order = order.gather(1, entries[..., d].gather(1, order).argsort(dim=1, stable=True))
    order = order.gather(1, (1 - used.gather(1, order)).argsort(dim=1, stable=True))
    last = used.sum(dim=1, keepdim=True, dtype=torch.int64) - 1
    at = torch.arange(count, device=codes.device).expand(blocks, -1)
    source = order.gather(1, torch.minimum(at, last))
    if torch.equal(order, at):
        return entries.gather(1, source[..., None].expand(-1, -1, dim)), source, codes
    rank = torch.empty_like(order).scatter_(1, order, at).to(torch.uint8)
    new_codes = torch.empty_like(codes)
    for b, n in some:
        new_codes[b, n] = rank[b].gather(1, codes[b, n].long())
    return entries.gather(1, source[..., None].expand(-1, -1, dim)), source, new_codes
