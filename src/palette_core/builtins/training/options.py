"""Options of `dkm`, light enough for the registration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DkmOptions(BaseModel):
    """Options of the training strategy ``dkm``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(
        default=2.0,
        gt=0,
        allow_inf_nan=False,
        description=(
            "How soft assignments are at first, in twelfths of the mean squared distance of an "
            "entry to its nearest neighbour, which is about the mean squared error of the "
            "palette. Above 8, neighbouring entries fall together."
        ),
    )
    final_temperature: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Temperature after `anneal_steps`; None keeps `temperature`.",
    )
    anneal_steps: int = Field(
        default=0,
        ge=0,
        description=(
            "Training steps, from the one at which the weight is palettized, over which the "
            "temperature goes geometrically from the first to the final one."
        ),
    )
    iterations: int = Field(
        default=1,
        ge=1,
        description="Soft k-means steps in each forward pass, from the tables of the last step.",
    )

    def at(self, step: int) -> float:
        """Return the temperature at a step."""
        final = self.temperature if self.final_temperature is None else self.final_temperature
        if step >= self.anneal_steps:
            return final
        return float(self.temperature * (final / self.temperature) ** (step / self.anneal_steps))
