"""Operations at work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from palette_core._common.pytrees import tensors
from palette_core.errors import PaletteError, named_text_of
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.guards import shown
from palette_core.plugins.kinds import OPERATION
from palette_core.plugins.making import Made, make
from palette_core.plugins.operations import Consumption, Operation, OperationCall, OperationEntry
from palette_core.plugins.registries import CORE, Quarantined, Registered
from palette_core.tensors.input_views import InputView


def make_operation(item: Registered[OperationEntry]) -> Operation:
    """Make what looks at calls of an operation; it does as the plug-in does, and checks.

    Raises:
        OperationError: making it fails, or makes something else.
    """
    return _CheckedOperation(make(item, {}))


def usable_operations(catalog: Catalog) -> Catalog:
    """Return the catalog with operations that cannot be made in quarantine.

    Calls of an operation come up in runs that do not name it, so that a factory that fails must
    not wait until then. Factories import what is heavy: this is for those who look at calls, or
    list what works.
    """
    registry = catalog.operations
    usable: list[Registered[OperationEntry]] = []
    broken: list[Quarantined] = []
    for item in registry:
        try:
            if item.distribution.name != CORE:
                make_operation(item)
            usable.append(item)
        except PaletteError as error:
            name = f"{OPERATION.slug}:{item.entry.name}"
            broken.append(Quarantined(item.distribution, name, named_text_of(error)))
    if not broken:
        return catalog
    quarantined = (*catalog.quarantined, *broken)
    left = replace(registry, items=tuple(usable), quarantined=quarantined)
    return replace(catalog, by_kind={**catalog.by_kind, OPERATION: left}, quarantined=quarantined)


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

    def _unwritten(self, call: OperationCall) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._made.is_ours else self._put_back(call)

    @contextlib.contextmanager
    def _put_back(self, call: OperationCall) -> Iterator[None]:
        """Put back what the plug-in writes to a call's arguments, weights of the model among them.

        Raises:
            OperationError: it has done so.
        """
        given = tensors(dict(call.arguments))
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
