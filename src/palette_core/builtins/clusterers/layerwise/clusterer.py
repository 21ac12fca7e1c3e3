"""``gptq`` and ``lnq``: look-up tables for the outputs of a layer, not for its weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from palette_core.builtins.clusterers.layerwise.options import GptqOptions, LnqOptions
from palette_core.plugins import Clusterer, ClusterProblem
from palette_core.tensors import Codebook

if TYPE_CHECKING:
    from palette_core.builtins.clusterers.layerwise.steps import Matrix, Solution

__all__ = ["Gptq", "Lnq"]


@final
class Gptq(Clusterer):
    """Chooses codes so that the layer's squared output error tr(ΔW H ΔWᵀ) is small.

    1. Tables from k-means weighted by the mean squares of the inputs, diag(H).
    2. Column by column, every element takes the entry nearest to itself plus what the errors of
       the columns before it call for (Frantar et al. 2022, GPTQ, arXiv 2210.17323, section 3,
       with look-up tables in place of a grid; the feedback from the Cholesky factor of H as in
       Chee et al. 2023, arXiv 2307.13304, section 3).
    3. Entries fitted to the codes by least squares under H, as they can be stored; and again.

    Of all solutions met, the best is returned, table by table: never worse than 1.
    """

    def __init__(self, options: GptqOptions | None = None) -> None:
        self.options = GptqOptions() if options is None else options

    def fit(self, problem: ClusterProblem) -> Codebook:
        """Cluster every block, all blocks of a row together.

        Returns:
            ``lut`` ``[B, K, D]`` float32 as it decodes, ``codes`` ``[B, N]`` uint8, and the
            objective before (after step 1) and after: mean squared output error, with damping.

        Raises:
            ClusteringError: no moments, or moments that cannot be used.
        """
        from palette_core.builtins.clusterers.layerwise import methods as steps
        from palette_core.builtins.clusterers.layerwise.problem import fit_with

        o = self.options
        return fit_with(
            "gptq",
            problem,
            o.damping,
            lambda matrix, start: steps.gptq(matrix, start, act_order=o.act_order, refits=o.refits),
        )


@final
class Lnq(Clusterer):
    """Lowers the layer's squared output error tr(ΔW H ΔWᵀ) over codes and entries in turns.

    Starts from ``gptq``. Then, in rounds: each element in turn takes the entry that is best with
    all others as they are (cyclic coordinate descent), and each table the entries that are best
    for its codes (a linear system of K unknowns), as they can be stored. The method is LNQ of
    Kim et al. 2025 (GuidedQuant, arXiv 2505.07004, section 4).
    """

    def __init__(self, options: LnqOptions | None = None) -> None:
        self.options = LnqOptions() if options is None else options

    def fit(self, problem: ClusterProblem) -> Codebook:
        """Cluster every block, all blocks of a row together.

        Returns:
            ``lut`` ``[B, K, D]`` float32 as it decodes, ``codes`` ``[B, N]`` uint8, and the
            objective before (weighted k-means) and after: mean squared output error, with
            damping. It is never higher.

        Raises:
            ClusteringError: no moments, or moments that cannot be used.
        """
        from palette_core.builtins.clusterers.layerwise import methods as steps
        from palette_core.builtins.clusterers.layerwise.problem import fit_with

        o = self.options

        def improve(matrix: Matrix, start: Solution) -> Solution:
            warm = steps.gptq(matrix, start, act_order=o.act_order, refits=o.refits)
            return steps.lnq(matrix, warm, rounds=o.rounds, sweeps=o.sweeps, tolerance=o.tolerance)

        return fit_with("lnq", problem, o.damping, improve)
