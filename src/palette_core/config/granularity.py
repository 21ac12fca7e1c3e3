"""How a weight is cut into blocks that get one look-up table each.

A granularity answers one question: how many elements of each axis one block spans. Everything
else (cutting, putting together, indexing, exporting) follows from that answer and lives in
:mod:`palette_core.tensors.layout`, so a granularity of a third party survives the whole trip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, final

from pydantic import Field

from palette_core._common.strict import FrozenModel
from palette_core.errors import IncompatibleShapeError, did_you_mean
from palette_core.tensors.layout import Shape


class Granularity(FrozenModel, ABC):
    """Base class of granularities: frozen, compared by value, serialised with their ``type``.

    A subclass declares ``type: Literal["its_name"] = "its_name"``, its options as fields, and
    :meth:`block_shape`.
    """

    type: str

    @abstractmethod
    def block_shape(self, shape: Shape, default_axis: int) -> Shape:
        """Return how many elements of each axis one block spans.

        Args:
            shape: shape of the weight, at least one axis.
            default_axis: the output-channel axis of the operation that consumes the weight
                (1 for transposed convolutions, 0 otherwise).

        Returns:
            As many positive integers as ``shape`` has, each dividing its extent.

        Raises:
            IncompatibleShapeError: the weight cannot be cut this way.
        """


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

    def block_shape(self, shape: Shape, default_axis: int) -> Shape:
        """Return ``shape`` itself: one block."""
        del default_axis
        return shape


@final
class PerGroupedChannelGranularity(Granularity):
    """One look-up table per ``group_size`` neighbouring channels along ``axis``.

    Attributes:
        axis: the channel axis; None means the output-channel axis of the operation that consumes
            the weight (1 for transposed convolutions, 0 otherwise).
        group_size: how many neighbouring channels share a table; has to divide their number.
    """

    type: Literal["per_grouped_channel"] = "per_grouped_channel"
    axis: Literal[0, 1] | None = Field(
        default=None, description="the channel axis; null is the operation's output-channel axis"
    )
    group_size: int = Field(
        gt=0, description="how many neighbouring channels share a table; has to divide their number"
    )

    def block_shape(self, shape: Shape, default_axis: int) -> Shape:
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


def _nearest_divisor(extent: int, wanted: int) -> str:
    divisors = [d for d in range(1, extent + 1) if extent % d == 0]
    near = min(divisors, key=lambda d: abs(d - wanted), default=None)
    return "" if near is None else f"; the nearest that does is {near}"


GranularityResolver = Callable[[str], type[Granularity]]


def _resolve_builtin(name: str) -> type[Granularity]:
    known: dict[str, type[Granularity]] = {
        "per_tensor": PerTensorGranularity,
        "per_grouped_channel": PerGroupedChannelGranularity,
    }
    if name not in known:
        raise ValueError(f"unknown granularity {name!r}{did_you_mean(name, known)}")
    return known[name]


# The plug-in catalog, which this module must not import, puts its own look-up here.
_resolver: list[GranularityResolver] = [_resolve_builtin]


def set_granularity_resolver(resolver: GranularityResolver) -> None:
    """Let ``resolver`` turn the ``type`` of a granularity dictionary into its class.

    Called once by the plug-in catalog. ``resolver`` raises a ``ValueError`` for unknown names.
    """
    _resolver[:] = [resolver]


def parse_granularity(value: Any) -> Granularity:
    """Turn an object or a dictionary with a ``type`` key into a granularity.

    Raises:
        ValueError: not a granularity, no ``type``, or a ``type`` nobody registers.
    """
    if isinstance(value, Granularity):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            f"expected a granularity or a mapping with a 'type' key, got {value!r}; "
            "for example {'type': 'per_grouped_channel', 'group_size': 16}"
        )
    if "type" not in value:
        raise ValueError(
            f"missing 'type' key in granularity {dict(value)!r}; "
            "for example 'per_tensor' or 'per_grouped_channel'"
        )
    if not isinstance(value["type"], str):
        raise ValueError(f"the 'type' of a granularity is its name, got {value['type']!r}")
    return _resolver[0](value["type"]).model_validate(dict(value))
