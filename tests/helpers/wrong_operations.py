"""Operations that break one sentence of the contract each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from palette_core.plugins import Consumption, Operation, OperationCall, OperationEntry
from palette_core.tensors import Features

Look = Callable[[OperationCall], Iterator[Consumption]]
LIBRARY = torch.library.Library("wrong_plugin", "FRAGMENT")
LIBRARY.define("project(Tensor x, Tensor weight) -> Tensor")
LIBRARY.impl("project", lambda x, weight: x @ weight, "CompositeImplicitAutograd")


def calls() -> Iterator[tuple[Any, tuple[Tensor, ...]]]:
    yield torch.ops.wrong_plugin.project, (torch.rand(5, 6) + 1, torch.randn(6, 4))


def right(call: OperationCall) -> Iterator[Consumption]:
    yield Consumption(call["weight"], (call["x"],), Features(rows=(1,)))


def of_square_inputs(call: OperationCall) -> Iterator[Consumption]:
    yield Consumption(call["weight"], (call["x"].square(),), Features(rows=(1,)))


def scaling(call: OperationCall) -> Iterator[Consumption]:
    call["x"].mul_(2)
    yield from right(call)


def operation(look: Look, **changed: Any) -> OperationEntry:
    class Wrong(Operation):
        def consumptions(self, call: OperationCall) -> Iterator[Consumption]:
            return look(call)

    about = {"channel_axis": 1, "aliases": ("wrong_plugin::project",)} | changed
    return OperationEntry(
        name="wrong", summary="wrong", interface=1, factory=lambda options: Wrong(), **about
    )


OPERATIONS = {
    "names": operation(right, aliases=("linear",)),
    "called": operation(right, aliases=("wrong_plugin.projection",)),
    "axis": operation(right, channel_axis=0),
    "inputs": operation(of_square_inputs),
    "pure": operation(scaling),
}
