"""``lnq``: alternating coordinate descent over codes and least squares over entries."""

from __future__ import annotations

from typing import final

from pydantic import BaseModel, ConfigDict, Field

from palette_core.builtins.clusterers.layerwise.options import Damping
from palette_core.plugins import Clusterer, ClusterProblem
from palette_core.tensors.palettized import Codebook

__all__ = ["Lnq", "LnqOptions"]


class LnqOptions(BaseModel):
    """Options of ``lnq``.

    Attributes:
        damping: added to the diagonal of the second moments, as a share of its mean; None is
            more the fewer calibration inputs there are, see `InputMoments.damping`.
        act_order: for the ``gptq`` start: largest inputs are chosen first.
        refits: for the ``gptq`` start: least-squares fits of the tables.
        rounds: of coordinate descent and least squares, at most.
        sweeps: over all elements in one round, at most.
        tolerance: a round that lowers the objective by a smaller share is the last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    damping: Damping = None
    act_order: bool = Field(default=True, description="largest inputs first, in the gptq start")
    refits: int = Field(default=1, ge=0, le=100, description="least-squares fits in the gptq start")
    rounds: int = Field(default=8, ge=0, le=1000, description="rounds, at most")
    sweeps: int = Field(default=3, ge=1, le=1000, description="sweeps over elements in a round")
    tolerance: float = Field(
        default=2e-3, ge=0, lt=1, description="a smaller gain than this share ends the rounds"
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
        from palette_core.builtins.clusterers.layerwise.steps import Matrix, State

        o = self.options

        def improve(matrix: Matrix, start: State) -> State:
            warm = steps.gptq(matrix, start, act_order=o.act_order, refits=o.refits)
            return steps.lnq(matrix, warm, rounds=o.rounds, sweeps=o.sweeps, tolerance=o.tolerance)

        return fit_with("lnq", problem, o.damping, improve)
