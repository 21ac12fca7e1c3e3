"""Options of ``kmeans1d``, apart from the code: reading them costs nothing."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class KMeans1dOptions(BaseModel):
    """Options of the built-in scalar k-means.

    Attributes:
        exact: find the optimum over all distinct values, proven, whatever
            ``enable_fast_kmeans_mode`` says. 16-bit weights always get it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exact: bool = Field(
        default=False, description="the proven optimum, whatever enable_fast_kmeans_mode says"
    )
