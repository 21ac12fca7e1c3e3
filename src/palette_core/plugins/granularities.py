"""The kind *granularity*: how a weight is cut into blocks with one look-up table each.

A granularity answers one question: how many elements of each axis one block spans. Everything
else (cutting, putting together, indexing, exporting) follows from that answer and lives in
:mod:`palette_core.tensors.layout`, so a granularity of a third party survives the whole trip.
"""

from __future__ import annotations

import inspect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from palette_core._common.strict import FrozenModel
from palette_core.plugins import types
from palette_core.plugins.entries import NoOptions, PluginEntry
from palette_core.plugins.markers import hookspec


class Granularity(FrozenModel, ABC):
    """Base class of granularities: frozen, compared by value, serialised with their ``type``.

    A subclass declares ``type: Literal["its_name"] = "its_name"``, its options as fields, and
    :meth:`block_shape`.
    """

    type: str

    @abstractmethod
    def block_shape(self, shape: types.Shape, default_axis: int) -> types.Shape:
        """Return how many elements of each axis one block spans.

        Args:
            shape: shape of the weight, at least one axis.
            default_axis: the output-channel axis of the operation that consumes the weight
                (0 of linear layers and convolutions, 1 of transposed ones, the last of ``x @ W``).

        Returns:
            As many positive integers as ``shape`` has, each dividing its extent.

        Raises:
            IncompatibleShapeError: the weight cannot be cut this way.
        """

    @final
    def num_blocks_to_cluster(self, weight: types.Tensor, default_axis: int = 0) -> int:
        """Return how many look-up tables a weight gets.

        Args:
            weight: of which only the shape counts.
            default_axis: as for `block_shape`; 0 unless an operation says otherwise.

        Raises:
            IncompatibleShapeError: the weight cannot be cut this way.
        """
        block = self.block_shape(tuple(weight.shape), default_axis)
        return math.prod(s // b for s, b in zip(weight.shape, block, strict=True))

    @final
    def get_blocks_to_cluster(
        self, weight: types.Tensor, default_axis: int = 0
    ) -> list[types.Tensor]:
        """Return the parts of a weight that have a look-up table each, as views of it.

        Args:
            weight: what to cut.
            default_axis: as for `num_blocks_to_cluster`.

        Raises:
            IncompatibleShapeError: the weight cannot be cut this way.
        """
        block = self.block_shape(tuple(weight.shape), default_axis)
        starts = (range(0, s, b) for s, b in zip(weight.shape, block, strict=True))
        return [
            weight[tuple(slice(at, at + b) for at, b in zip(place, block, strict=True))]
            for place in itertools.product(*starts)
        ]

    def describe(self, default_axis: int) -> str:
        """Return the granularity in a few characters, for tables: its type, and its options.

        Args:
            default_axis: as for `block_shape`.
        """
        del default_axis
        options = self.model_dump(exclude={"type"}, exclude_none=True)
        text = ", ".join(f"{key}={value}" for key, value in options.items())
        return self.type.replace("_", " ") + (f" ({text})" if text else "")


@dataclass(frozen=True, kw_only=True)
class GranularityEntry(PluginEntry):
    """A granularity. ``name`` equals the ``type`` of ``model``, which is its options model too."""

    model: type[Granularity]

    def __post_init__(self) -> None:
        if self.options is NoOptions and isinstance(self.model, type):
            object.__setattr__(self, "options", self.model)

    def check(self) -> None:
        """Refuse a model that is no granularity of this name.

        Raises:
            TypeError: naming the model.
        """
        model: object = self.model
        usable = isinstance(model, type) and issubclass(model, Granularity)
        if (
            not usable
            or inspect.isabstract(self.model)
            or self.model.model_fields["type"].default != self.name
        ):
            raise TypeError(
                f"model of {self.name!r} must be a Granularity class that defines block_shape "
                f"and a field 'type' that defaults to {self.name!r}, got {self.model!r}"
            )


@hookspec
def palette_core_granularities() -> Iterable[GranularityEntry]:
    """Return the granularities that this distribution provides.

    Example::

        from typing import Literal

        from palette_core.plugins import INTERFACE_VERSION, Granularity, GranularityEntry, hookimpl


        class PerChannel(Granularity):
            '''One look-up table per output channel.'''

            type: Literal["per_channel"] = "per_channel"

            def block_shape(self, shape, default_axis):
                return (*shape[:default_axis], 1, *shape[default_axis + 1 :])


        @hookimpl
        def palette_core_granularities():
            return [
                GranularityEntry(
                    name="per_channel",
                    summary="one look-up table per output channel",
                    interface=INTERFACE_VERSION,
                    model=PerChannel,
                )
            ]
    """
    raise AssertionError("hook specifications are never called")
