"""NormalFloat codebooks: Dettmers et al. 2023, QLoRA (arXiv 2305.14314), section 3, appendix E."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from palette_core.plugins import Clusterer, ClusterProblem
from palette_core.tensors import Codebook


@final
class NormalFloat(Clusterer):
    """Chooses no entries: they are `quantiles` times the largest magnitude of each block."""

    def fit(self, problem: ClusterProblem) -> Codebook:
        """Scale the codebook to each block, and give each point the nearest entry.

        Raises:
            ValueError: a point is NaN or infinite.
        """
        points = problem.points
        if not points.isfinite().all():
            raise ValueError("points must be finite")
        x = points[..., 0].double()  # [B, N]
        largest = x.abs().amax(dim=1, keepdim=True)
        lut = largest * quantiles(problem.n_entries).to(x.device)  # [B, K]
        stored = lut.to(points.dtype).double()  # what the entries will be
        middles = (stored[:, 1:] + stored[:, :-1]) / 2
        codes = torch.searchsorted(middles.contiguous(), x.contiguous())
        return Codebook(lut[..., None], codes.to(torch.uint8))


def quantiles(n_entries: int) -> Tensor:
    """Return the codebook for blocks whose largest magnitude is 1.

    Evenly spaced probabilities, one half of them on either side of a zero that is exact; there
    is one more positive entry than there are negative ones. Two entries, which leave nothing for
    one side, are the ends instead.

    Args:
        n_entries: 2, 4, 8, … 256.

    Returns:
        ``[n_entries]`` float64, ascending from -1 to 1.
    """
    if n_entries == 2:
        return torch.tensor([-1.0, 1.0], dtype=torch.float64)
    half = n_entries // 2
    # Half-way between the outermost probabilities that both sides would have by themselves.
    outer = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    above, below = _normal(half + 1, outer), _normal(half, outer)
    return torch.cat([-below.flip(0)[:-1], above]) / above[-1]


def _normal(count: int, outer: float) -> Tensor:
    probabilities = torch.linspace(0.5, outer, count, dtype=torch.float64)
    values: Tensor = torch.special.ndtri(probabilities)
    return values
