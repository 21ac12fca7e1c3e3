"""What the options of ``gptq`` and ``lnq`` share; reading it costs nothing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Damping = Annotated[
    float | None,
    Field(
        ge=0,
        le=1,
        description="added to the diagonal, as a share of its mean; None: 0.01 to 0.3, more the "
        "fewer calibration inputs there are",
    ),
]
