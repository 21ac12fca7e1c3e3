"""``lnq``: alternating coordinate descent over codes and least squares over entries."""

from __future__ import annotations

from typing import final

from palette_core.builtins.clusterers.layerwise.options import LnqOptions
from palette_core.plugins import Clusterer, ClusterProblem
from palette_core.tensors.palettized import Codebook

__all__ = ["Lnq", "LnqOptions"]


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
        from palette_core.builtins.clusterers.layerwise.steps import Matrix, State

        o = self.options

        def improve(matrix: Matrix, start: State) -> State:
            warm = steps.gptq(matrix, start, act_order=o.act_order, refits=o.refits)
            return steps.lnq(matrix, warm, rounds=o.rounds, sweeps=o.sweeps, tolerance=o.tolerance)

        return fit_with("lnq", problem, o.damping, improve)
