"""Options of a config: the parameters of scikit-learn's estimators, by the same names."""

from __future__ import annotations

from typing import Literal, Self, final

from pydantic import BaseModel, ConfigDict, Field, model_validator


@final
class KMeansOptions(BaseModel):
    """Options of ``sklearn_kmeans``, passed to `sklearn.cluster.KMeans`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_init: int = Field(
        default=3, ge=1, description="Runs from different seeds; the best one is kept."
    )
    max_iter: int = Field(default=300, ge=1, description="Iterations of one run, at most.")
    tol: float = Field(
        default=1e-4,
        ge=0,
        description="Stop when the centroids move less, relative to the variance of the points.",
    )
    init: Literal["k-means++", "random"] = Field(
        default="k-means++", description="How the first centroids are picked from the points."
    )
    n_local_trials: int | None = Field(
        default=None,
        ge=1,
        description="Points that k-means++ tries for each centroid; null tries 2 + ⌊ln K⌋.",
    )
    algorithm: Literal["lloyd", "elkan"] = Field(
        default="lloyd",
        description="'elkan' skips distances by the triangle inequality, and needs memory for "
        "points times entries.",
    )

    @model_validator(mode="after")
    def _check_trials(self) -> Self:
        if self.n_local_trials is not None and self.init != "k-means++":
            raise ValueError("n_local_trials is for init 'k-means++'")
        return self


@final
class MiniBatchKMeansOptions(BaseModel):
    """Options of ``sklearn_minibatch``, passed to `sklearn.cluster.MiniBatchKMeans`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_init: int = Field(
        default=3, ge=1, description="First centroids tried on a sample; the best ones are used."
    )
    max_iter: int = Field(default=100, ge=1, description="Passes over the points, at most.")
    tol: float = Field(
        default=0.0,
        ge=0,
        description="Stop when the centroids move less, relative to the variance of the points; "
        "0 leaves stopping to max_no_improvement.",
    )
    init: Literal["k-means++", "random"] = Field(
        default="k-means++", description="How the first centroids are picked from the points."
    )
    batch_size: int = Field(default=16384, ge=1, description="Points in one batch.")
    max_no_improvement: int | None = Field(
        default=10,
        ge=1,
        description="Stop after this many batches without improvement; null never does.",
    )
    reassignment_ratio: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Entries that stand for fewer points than this share of the most used one's "
        "start afresh at a random point; at many bits that costs accuracy.",
    )
