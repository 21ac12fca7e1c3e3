"""Which entry of a table each point of a weight is, told by ratios within channels.

Channels that hold the same entries times factors of their own have the same ratios of values, but
for the rounding of products. Tables grow as channels are met, those of many values first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_SAME = 8.0  # roundings by which ratios of the same entries may differ


@dataclass
class _Table:
    """Entries of a block as they are met, float64 up to one factor (for each value of vectors)."""

    most: int
    near: float
    entries: list[Tensor] = field(default_factory=list)

    def match(self, values: Tensor, *, alone: bool) -> Tensor | None:
        """Return which entries distinct values ``[m, D]`` are, new ones included; or None.

        Args:
            values: of channels that share their factors.
            alone: each of the D values has a factor of its own.
        """
        if not bool(values.any()):
            zeros = [k for k, entry in enumerate(self.entries) if not bool(entry.any())]
            return self._added(values, torch.tensor(zeros[:1] or [-1]))
        if not self.entries:
            size = values.abs().amax(dim=0) if alone else values.abs().max().expand(values.shape[1])
            return self._added(values / torch.where(size > 0, size, 1.0), None)
        known = torch.stack(self.entries)
        order = values.abs().amin(dim=1).argsort(descending=True)
        best: tuple[int, Tensor, Tensor] | None = None
        for j in order[: max(4, self.most // 8)]:
            found = self._aligned(values, known, values[j], alone)
            if found is not None and (best is None or found[0] > best[0]):
                best = found
            if best is not None and best[0] >= len(values):
                break
        if best is None or (best[0] < 2 and len(values) > 1):
            return None
        return self._added(values / best[1], best[2])

    def _aligned(
        self, values: Tensor, known: Tensor, of: Tensor, alone: bool
    ) -> tuple[int, Tensor, Tensor] | None:
        """Return the most values that are entries when ``of`` is one: how many, by what, which."""
        if not alone:
            at = of.abs().argmax()
            of, over = of[at : at + 1], known[:, at : at + 1]
        else:
            over = known
        factors = of / torch.where(over == 0, torch.inf, over)
        usable = (factors > 0).all(dim=1)
        if not bool(usable.any()):
            return None
        factors = factors[usable]
        units = values / factors[:, None]  # [k, m, D]
        if values.shape[1] == 1:
            ordered, order = known[:, 0].sort()
            right = torch.searchsorted(ordered, units[..., 0]).clamp(max=len(known) - 1)
            left = (right - 1).clamp(min=0)
            nearer = (units[..., 0] - ordered[left]).abs() < (units[..., 0] - ordered[right]).abs()
            which = order[torch.where(nearer, left, right)]
        else:
            gap = (units[:, :, None] - known).abs().amax(dim=-1)
            which = gap.argmin(dim=2)
        hit = ((units - known[which]).abs() <= self.near * known[which].abs()).all(dim=2)
        counts = hit.sum(dim=1)
        at = counts.argmax()
        return int(counts[at]), factors[at], torch.where(hit[at], which[at], -1)

    def _added(self, units: Tensor, which: Tensor | None) -> Tensor | None:
        which = torch.full((len(units),), -1) if which is None else which.clone()
        for j in (which < 0).nonzero()[:, 0].tolist():
            if len(self.entries) == self.most:
                return None
            which[j] = len(self.entries)
            self.entries.append(units[j])
        return which


def matched_entries(
    points: Tensor, channel: Tensor, n_entries: int, rounding: float
) -> Tensor | None:
    """Return the entry ``[B, N]`` of each point, by the ratios of values within channels."""
    alone = channel.shape[2] > 1 and bool((channel[0, 0] != channel[0, 0, 0]).any())
    out = torch.zeros(points.shape[:2], dtype=torch.int64)
    for b in range(len(points)):
        table = _Table(n_entries, _SAME * rounding)
        groups = []
        for first, at in _rows(channel[b, :, 0]):
            values, inverse = unique(points[b, at].double(), dim=0, return_inverse=True)
            if len(values) > n_entries:
                return None
            groups.append((len(values), first, at, values, inverse))
        for _, _, at, values, inverse in sorted(groups, key=lambda group: (-group[0], group[1])):
            which = table.match(values, alone=alone)
            if which is None:
                return None
            out[b, at] = which[inverse]
    return out


def _rows(channel: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each channel of ``[N]`` with the places where it is."""
    ordered, places = channel.sort(stable=True)
    values, counts = unique(ordered, return_counts=True)
    yield from zip(values.tolist(), torch.split(places, counts.tolist()), strict=True)


def unique(values: Tensor, **options: Any) -> Any:
    """Return what `Tensor.unique` returns, which torch does not type."""
    return values.unique(**options)  # type: ignore[no-untyped-call]
