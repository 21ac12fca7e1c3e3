"""Settings of k-means for vectors, by the reference's names."""

from __future__ import annotations

from typing import final

from pydantic import Field

from palette_core._common.strict import FrozenModel


@final
class VectorKMeansConfig(FrozenModel):
    """Settings of k-means for vectors. Frozen, hashable, compared by value.

    Where it is given, all four hold; where it is not, every algorithm keeps its own defaults.

    Attributes:
        n_local_trials: points tried for each entry in k-means++ seeding, of which the best is
            taken; None tries 2 + ⌊ln K⌋ for K entries.
        n_init: seedings tried; the best goes on. The built-in k-means tries more where one costs
            little, in small blocks and tables.
        max_iter: most iterations of Lloyd's algorithm in a run.
        tol: iteration stops when a step gains less, relative to what the algorithm looks at: the
            built-in k-means at the error, scikit-learn's at how far entries move.
    """

    n_local_trials: int | None = Field(default=None, gt=0)
    n_init: int = Field(default=5, gt=0)
    max_iter: int = Field(default=300, gt=0)
    tol: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
