"""Operations at work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import final

import torch
from torch import Tensor, nn

from palette_core._common.pytrees import tensors
from palette_core.plugins.guards import shown
from palette_core.plugins.making import Made, make
from palette_core.plugins.operations import Consumption, Operation, OperationCall, OperationEntry
from palette_core.plugins.registries import Registered
from palette_core.tensors.input_views import InputView


def make_operation(item: Registered[OperationEntry]) -> Operation:
    """Make what looks at calls of an operation; it does as the plug-in does, and checks.

    Raises:
        OperationError: making it fails, or makes something else.
    """
    return _CheckedOperation(make(item, {}))


@final
class _CheckedOperation(Operation):
    def __init__(self, made: Made[Operation]) -> None:
        self._made = made

    def channel_axis(self, call: OperationCall, weight: Tensor) -> int | None:
        """Ask the plug-in.

        Raises:
            OperationError: it fails, or returns what is no axis of the weight.
        """
        with self._unwritten(call):
            axis: object = self._made.ask(lambda operation: operation.channel_axis(call, weight))
        if axis is None:
            return None
        if type(axis) is int and -weight.dim() <= axis < weight.dim():
            return axis % weight.dim()
        raise self._made.wrong(
            f"channel_axis returned {shown(axis)} for a weight of shape {tuple(weight.shape)}; "
            "expected None or one of its axes"
        )

    def consumptions(self, call: OperationCall) -> list[Consumption]:
        """Ask the plug-in.

        Raises:
            OperationError: it fails, or yields what no sums can be made of.
        """
        with self._unwritten(call):
            found: Iterable[Consumption] = self._made.ask(
                lambda operation: list(operation.consumptions(call))
            )
        return [self._checked(item) for item in found]

    @contextlib.contextmanager
    def _unwritten(self, call: OperationCall) -> Iterator[None]:
        """Put back what the plug-in writes to a call's arguments, weights of the model among them.

        Raises:
            OperationError: it has done so.
        """
        given = () if self._made.is_ours else tensors(dict(call.arguments))
        kept = [(tensor, tensor.detach().clone()) for tensor in given if _compares(tensor)]
        written = False
        try:
            yield
        finally:
            for tensor, copy in kept:
                if not torch.equal(tensor, copy):
                    written = True
                    with torch.no_grad():
                        tensor.data.copy_(copy)
        if written:
            raise self._made.wrong("has written to what the operation was given")

    def _checked(self, item: object) -> Consumption:
        wrong = self._made.wrong
        if not isinstance(item, Consumption):
            raise wrong(f"consumptions yielded a {type(item).__name__}, no Consumption")
        weight: object = item.weight
        view: object = item.view
        if not isinstance(weight, Tensor) or not isinstance(view, InputView):
            raise wrong(
                f"a Consumption has a weight and an InputView, got {type(weight).__name__} and "
                f"{shown(view)}"
            )
        shape = tuple(weight.shape)
        if not view.rows or not all(axis in range(len(shape)) for axis in view.rows):
            raise wrong(f"rows={view.rows!r} of {view!r} are no axes of a weight of shape {shape}")
        groups = self._made.ask(lambda _: view.groups())
        if groups < 1 or shape[0] % groups:
            raise wrong(
                f"{view!r} has {groups} groups, which do not divide axis 0 of a weight of shape "
                f"{shape}"
            )
        return item


def _compares(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return plain and not (tensor.is_meta or tensor.is_quantized or tensor.is_inference())
