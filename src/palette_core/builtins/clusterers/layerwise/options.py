"""Options of ``gptq`` and ``lnq``, apart from the code: reading them costs nothing."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Damping = Annotated[
    float | None,
    Field(
        ge=0,
        le=1,
        description="added to the diagonal, as a share of its mean; None: 0.01 to 0.3, more the "
        "fewer calibration inputs there are",
    ),
]


class GptqOptions(BaseModel):
    """Options of ``gptq``.

    Attributes:
        damping: added to the diagonal of the second moments, as a share of its mean; None is
            more the fewer calibration inputs there are, see `InputMoments.damping`.
        act_order: input coordinates with the largest mean squares are chosen first.
        refits: how often the tables are fitted to the codes by least squares and the codes
            chosen anew.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    damping: Damping = None
    act_order: bool = Field(default=True, description="largest inputs first")
    refits: int = Field(
        default=2, ge=0, le=100, description="least-squares fits of the tables to the codes"
    )


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
