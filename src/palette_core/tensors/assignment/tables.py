"""Costs of many tables, again and again for the same points: prepared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from palette_core.tensors.assignment.passes import PassResult, assign_and_sum

_MOST = 1 << 24  # points of a scalar block that are sorted, at 12 bytes each


class Tables(Protocol):
    """Points of B blocks, ready to be given tables."""

    def weigh(self, entries: Tensor, blocks: Tensor) -> PassResult:
        """Give the points of some blocks their nearest entries.

        Args:
            entries: ``[b, K, D]`` float64, as they will decode.
            blocks: ``[b]`` int64, which they are of.

        Returns:
            codes that are good guesses, or none; sums, mass and cost of the nearest entries.
        """


def tables_of(points: Tensor, importance: Tensor | None, codes: Tensor) -> Tables:
    """Prepare points ``[B, N, D]``, elementwise importance or None, and codes that nearly fit."""
    if points.device.type == "cpu" and points.shape[2] == 1 and points.shape[1] <= _MOST:
        return SortedScalars.of(points[..., 0], None if importance is None else importance[..., 0])
    return _Anywhere(points, importance, codes)


@dataclass
class _Anywhere:
    points: Tensor
    importance: Tensor | None
    codes: Tensor

    def weigh(self, entries: Tensor, blocks: Tensor) -> PassResult:
        points, importance, codes = self.points, self.importance, self.codes
        if len(blocks) < len(points):
            points, codes = points[blocks], codes[blocks]
            importance = None if importance is None else importance[blocks]
        return assign_and_sum(points, importance, entries, codes)


@dataclass(frozen=True)
class SortedScalars:
    """Scalars of blocks in ascending order, with their weights and what strides of them sum to."""

    x: Any
    w: Any
    strides: Any

    @classmethod
    def of(cls, points: Tensor, importance: Tensor | None) -> SortedScalars:
        """Sort points ``[B, N]``; weights are ``[B, N]`` or None. Blocks without any get ones."""
        from palette_core.tensors.assignment._scalar_kernel import STRIDE, sum_strides

        wide = torch.float64 if points.dtype is torch.float64 else torch.float32
        x = points.detach().to(wide).contiguous().numpy()
        if importance is None:
            x, w = np.sort(x, axis=1), np.empty((len(x), 0), np.float32)
        else:
            w = importance.detach().to(torch.float32).numpy()
            w = np.where(w.any(axis=1, keepdims=True), w, np.float32(1))
            order = np.argsort(x, axis=1)
            x, w = np.take_along_axis(x, order, axis=1), np.take_along_axis(w, order, axis=1)
        strides = np.empty((len(x), -(-x.shape[1] // STRIDE), 3))
        sum_strides(x, w, strides)
        return cls(x, w, strides)

    def weigh(self, entries: Tensor, blocks: Tensor) -> PassResult:
        """Give the points of some blocks their nearest entries; see `Tables`. Without codes."""
        from palette_core.tensors.assignment._scalar_kernel import weigh_tables

        table = entries[..., 0].contiguous().numpy()
        sums, mass, cost = np.empty_like(table), np.empty_like(table), np.empty(len(table))
        weigh_tables(self.x, self.w, self.strides, blocks.numpy(), table, sums, mass, cost)
        return PassResult(
            torch.empty((len(table), 0), dtype=torch.uint8),
            *(torch.from_numpy(part) for part in (sums[..., None], mass[..., None], cost)),
        )
