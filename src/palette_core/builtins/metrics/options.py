"""Options of the built-in sensitivity metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OutputOptions(BaseModel):
    """Options of the metric ``output``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    divergence: Literal["mse", "kl"] = Field(
        default="mse",
        description="mse: squared error of the outputs relative to their square; kl: "
        "Kullback-Leibler divergence of the softmax over the last axis, for logits.",
    )
