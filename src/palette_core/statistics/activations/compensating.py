"""Weights that make good for what the palettes before them have made of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from palette_core.statistics.activations.accumulate import Gap
from palette_core.tensors.moments import InputMoments

_SINGLE = 2e5  # condition up to which float32 will do: rounding then is far below what λ changes


class Compensation:
    """Targets of the weights of one step; those with one input share factors and solutions.

    With X the inputs of the unchanged model and Y the present ones, outputs on present inputs come
    nearest to the original outputs with W + W (X − Y) Yᵀ (Y Yᵀ + λ I)⁻¹ (as in GPTAQ, Li et al.
    2025, arXiv 2504.02692), which is (W X Yᵀ + λ W) (Y Yᵀ + λ I)⁻¹.
    """

    def __init__(self) -> None:
        self._factors: dict[tuple[int, float], Tensor | None] = {}
        self._solved: dict[tuple[int, int, float], Tensor] = {}
        self._held: list[object] = []  # so that identities are not given to others

    def target(self, weight: Tensor, moments: InputMoments, gap: Gap, damping: float) -> Tensor:
        """Return what stands for a weight, float64; the weight where that cannot be told.

        Args:
            weight: the original weight.
            moments: of Y.
            gap: W (X − Y) Yᵀ / count, what to multiply with W for it, or W X Yᵀ / count.
            damping: λ, as a share of the mean diagonal of a group.
        """
        original = weight.detach().cpu().double()
        factor = self._factor(moments, damping)
        if factor is None:
            return original
        matrices = moments.to_matrices(original)
        if gap.aimed is not None:
            ridge = self._ridge(moments, damping)
            target = _solved(gap.aimed + ridge[:, None, None] * matrices, factor)
            return self._or_original(moments.from_matrices(target), original)
        moved = torch.zeros(1, dtype=torch.float64)
        if gap.moved is not None:
            moved = _solved(gap.moved, factor)
        if gap.cross is not None:
            moved = moved + self._through(matrices.float(), moments, gap.cross, factor, damping)
        return self._or_original(moments.from_matrices(matrices + moved), original)

    @staticmethod
    def _or_original(out: Tensor, original: Tensor) -> Tensor:
        # What is not finite shows in the sum.
        return out if bool(torch.isfinite(out.sum())) else original

    @staticmethod
    def _ridge(moments: InputMoments, damping: float) -> Tensor:
        """Return λ, ``[G]``."""
        return max(damping, 1e-6) * moments.scales()

    def _factor(self, moments: InputMoments, damping: float) -> Tensor | None:
        """Return the Cholesky factor of Y Yᵀ + λ I, None where there is none."""
        key = (id(moments.hessian), damping)
        if key not in self._factors:
            # No eigenvalue is above the trace, none below λ.
            single = moments.hessian.shape[-1] <= _SINGLE * damping
            h = moments.hessian.to(torch.float32 if single else torch.float64, copy=True)
            h.diagonal(dim1=1, dim2=2).add_(self._ridge(moments, damping)[:, None])
            factor, failed = torch.linalg.cholesky_ex(h)
            self._factors[key] = None if failed.any() else factor
            self._held.append(moments.hessian)
        return self._factors[key]

    def _through(
        self, matrices: Tensor, moments: InputMoments, cross: Tensor, factor: Tensor, damping: float
    ) -> Tensor:
        """Return W (X − Y) Yᵀ (Y Yᵀ + λ I)⁻¹ for W ``[G, R, C]`` float32.

        All but W is the same for all weights with one input, and solved for once; where one has
        few rows, these are.
        """
        key = (id(moments.hessian), id(cross), damping)
        if key not in self._solved:
            if 2 * matrices.shape[1] < matrices.shape[2]:
                return _solved(matrices @ cross.float(), factor)
            self._solved[key] = _solved(cross, factor).float()
            self._held.append(cross)
        return (matrices @ self._solved[key]).double()


def _solved(gap: Tensor, factor: Tensor) -> Tensor:
    """Return gap (Y Yᵀ + λ I)⁻¹, float64."""
    solve = torch.linalg.solve_triangular
    half = solve(factor.mT, gap.to(factor.dtype), upper=True, left=False)
    found: Tensor = solve(factor, half, upper=False, left=False)
    return found.double()
