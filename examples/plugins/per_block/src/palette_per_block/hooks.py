"""The granularity, and its registration."""

from __future__ import annotations

from typing import Literal, final

from pydantic import Field

from palette_core.errors import IncompatibleShapeError
from palette_core.plugins import Granularity, GranularityEntry, hookimpl


@final
class PerBlock(Granularity):
    """One look-up table per block of ``rows`` × ``columns`` channels.

    Rows are counted along axis 0 and columns along axis 1, whatever the operation; a block of a
    convolution spans the whole kernel.
    """

    type: Literal["per_block"] = "per_block"
    rows: int = Field(default=8, gt=0, description="channels of axis 0 in a block")
    columns: int = Field(default=8, gt=0, description="channels of axis 1 in a block")

    def block_shape(self, shape: tuple[int, ...], default_axis: int) -> tuple[int, ...]:
        """Return ``(rows, columns)`` and the rest of ``shape``.

        Raises:
            IncompatibleShapeError: fewer than two axes, or a block does not divide one of them.
        """
        del default_axis
        if len(shape) < 2:
            raise IncompatibleShapeError(
                f"per_block cuts axes 0 and 1; a weight of shape {shape} has no axis 1"
            )
        for axis, (name, step) in enumerate((("rows", self.rows), ("columns", self.columns))):
            if shape[axis] % step:
                raise IncompatibleShapeError(
                    f"{name}={step} does not divide the {shape[axis]} channels of axis {axis} "
                    f"of shape {shape}"
                )
        return (self.rows, self.columns, *shape[2:])


@hookimpl
def palette_core_granularities() -> list[GranularityEntry]:
    """Blocks of rows and columns."""
    return [
        GranularityEntry(
            name="per_block",
            summary="a table per block of rows × columns of channels",
            interface=1,
            model=PerBlock,
        )
    ]
