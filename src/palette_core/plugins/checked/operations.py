"""Operations at work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from torch import Tensor

from palette_core.errors import OperationError
from palette_core.plugins.guards import guarded, make
from palette_core.plugins.operations import Consumption, Operation, OperationCall, OperationEntry
from palette_core.plugins.registries import Registered
from palette_core.tensors.input_views import InputView


def make_operation(item: Registered[OperationEntry]) -> Operation:
    """Make what looks at calls of an operation; it does as the plug-in does, and checks.

    Raises:
        OperationError: making it fails, or makes something else.
    """
    made, who = make(item, {})
    return _CheckedOperation(who, made)


@final
class _CheckedOperation(Operation):
    def __init__(self, who: str, operation: Operation) -> None:
        self._who, self._operation = who, operation

    def channel_axis(self, call: OperationCall, weight: Tensor) -> int | None:
        """Ask the plug-in.

        Raises:
            OperationError: it fails, or returns what is no axis of the weight.
        """
        axis: object = guarded(
            self._who, OperationError, lambda: self._operation.channel_axis(call, weight)
        )
        if axis is None:
            return None
        if type(axis) is int and -weight.dim() <= axis < weight.dim():
            return axis % weight.dim()
        raise OperationError(
            f"{self._who}: channel_axis returned {axis!r} for a weight of shape "
            f"{tuple(weight.shape)}; expected None or one of its axes"
        )

    def consumptions(self, call: OperationCall) -> list[Consumption]:
        """Ask the plug-in.

        Raises:
            OperationError: it fails, or yields what no sums can be made of.
        """
        found: Iterable[Consumption] = guarded(
            self._who, OperationError, lambda: list(self._operation.consumptions(call))
        )
        return [self._checked(item) for item in found]

    def _checked(self, item: object) -> Consumption:
        if not isinstance(item, Consumption):
            kind = type(item).__name__
            raise OperationError(f"{self._who}: consumptions yielded a {kind}, no Consumption")
        weight: object = item.weight
        view: object = item.view
        if not isinstance(weight, Tensor) or not isinstance(view, InputView):
            raise OperationError(
                f"{self._who}: a Consumption has a weight and an InputView, got "
                f"{type(weight).__name__} and {view!r}"
            )
        shape = tuple(weight.shape)
        if not view.rows or not all(axis in range(len(shape)) for axis in view.rows):
            raise OperationError(
                f"{self._who}: rows={view.rows!r} of {view!r} are no axes of a weight of shape "
                f"{shape}"
            )
        groups = guarded(self._who, OperationError, view.groups)
        if groups < 1 or shape[0] % groups:
            raise OperationError(
                f"{self._who}: {view!r} has {groups} groups, which do not divide axis 0 of a "
                f"weight of shape {shape}"
            )
        return item
