"""The two documented granularities, and how a granularity is read from a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

from pydantic import Field

from palette_core.errors import IncompatibleShapeError
from palette_core.plugins import types
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.granularities import Granularity
from palette_core.plugins.kinds import GRANULARITY


@final
class PerTensorGranularity(Granularity):
    """One look-up table for the whole weight.

    Attributes:
        axis: always null; accepted because configurations of the reference write it.
    """

    type: Literal["per_tensor"] = "per_tensor"
    axis: None = Field(
        default=None, description="always null; accepted because reference configurations write it"
    )

    def block_shape(self, shape: types.Shape, default_axis: int) -> types.Shape:
        """Return ``shape`` itself: one block."""
        del default_axis
        return shape


@final
class PerGroupedChannelGranularity(Granularity):
    """One look-up table per ``group_size`` neighbouring channels along ``axis``.

    Attributes:
        axis: the channel axis; None means the output-channel axis of the operation that consumes
            the weight (0 of linear layers and convolutions, 1 of transposed ones, the last of
            ``x @ W``).
        group_size: how many neighbouring channels share a table; has to divide their number.
    """

    type: Literal["per_grouped_channel"] = "per_grouped_channel"
    axis: Literal[0, 1] | None = Field(
        default=None, description="the channel axis; null is the operation's output-channel axis"
    )
    group_size: int = Field(
        gt=0, description="how many neighbouring channels share a table; has to divide their number"
    )

    def block_shape(self, shape: types.Shape, default_axis: int) -> types.Shape:
        """Return ``shape`` with the extent of ``axis`` replaced by ``group_size``."""
        axis = default_axis if self.axis is None else self.axis
        if axis >= len(shape):
            raise IncompatibleShapeError(
                f"axis {axis} does not exist in a weight of shape {shape}; "
                "use per_tensor granularity for it"
            )
        if shape[axis] % self.group_size:
            raise IncompatibleShapeError(
                f"group_size {self.group_size} does not divide the {shape[axis]} channels of "
                f"axis {axis} of shape {shape}{_nearest_divisor(shape[axis], self.group_size)}"
            )
        return (*shape[:axis], self.group_size, *shape[axis + 1 :])

    def describe(self, default_axis: int) -> str:
        """Return for example ``"16 × axis 0"``."""
        return f"{self.group_size} × axis {default_axis if self.axis is None else self.axis}"


def _nearest_divisor(extent: int, wanted: int) -> str:
    divisors = [d for d in range(1, extent + 1) if extent % d == 0]
    near = min(divisors, key=lambda d: abs(d - wanted), default=None)
    return "" if near is None else f"; the nearest that does is {near}"


def parse_granularity(value: Any) -> Granularity:
    """Turn an object, a dictionary with a ``type`` key, or that type alone into a granularity.

    Raises:
        ValueError: not a granularity, no ``type``, or a ``type`` nobody registers.
    """
    if isinstance(value, Granularity):
        return value
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, Mapping):
        raise ValueError(
            f"expected a granularity, its type, or a mapping with a 'type' key, got {value!r}; "
            "for example {'type': 'per_grouped_channel', 'group_size': 16}"
        )
    if "type" not in value:
        raise ValueError(
            f"missing 'type' key in granularity {dict(value)!r}; "
            "for example 'per_tensor' or 'per_grouped_channel'"
        )
    if not isinstance(value["type"], str):
        raise ValueError(f"the 'type' of a granularity is its name, got {value['type']!r}")
    return get_catalog()[GRANULARITY].get(value["type"]).model.model_validate(dict(value))
