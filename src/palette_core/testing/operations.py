"""Checks of operations, on calls that the author gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from palette_core._common.pytrees import floating, mapped, tensors
from palette_core.operations import OperationTable, op_type_of
from palette_core.plugins import Consumption, InputMoments, OperationEntry
from palette_core.plugins.catalog import get_catalog
from palette_core.plugins.kinds import OPERATION
from palette_core.plugins.operations import plain
from palette_core.plugins.registries import Registered, Registry
from palette_core.tensors import BlockLayout
from palette_core.testing._kit import Subject, check, demand, fail
from palette_core.testing._probes import bits, draw

_TOLERANCE = 0.02  # of sums of squares of float32


@dataclass(frozen=True)
class _Call:
    """A call as it is seen from outside of a model."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def op_type(self) -> str | None:
        return op_type_of(self.func)

    def run(self, weight: Tensor | None = None, other: Tensor | None = None) -> Tensor:
        """Return all floating outputs, with ``other`` in place of a weight."""

        def exchange(tensor: Tensor) -> Any:
            return other if tensor is weight else tensor

        with torch.no_grad():
            made = self.func(*mapped(exchange, self.args), **mapped(exchange, dict(self.kwargs)))
        return torch.cat([part.double().flatten() for part in floating(made)])


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        self.calls.append(_Call(func, args, kwargs or {}))
        return func(*args, **kwargs or {})


def _looks(entry: OperationEntry) -> bool:
    """Return whether an entry says how inputs meet the weight."""
    return entry.factory is not plain


def _table(subject: Subject) -> OperationTable:
    return OperationTable(Registry(OPERATION, (Registered(subject.entry, subject.distribution),)))


def _given(subject: Subject) -> list[list[_Call]]:
    """Return what is seen of each call that the author gives."""
    if subject.calls is None:
        name = subject.entry.name
        fail(
            subject,
            f"there are no calls to look at; give parametrize_contract calls={{{name!r}: f}}, f a "
            "function that returns calls such as [(torch.ops.my_library.project, (x, weight))]",
        )
    found = []
    for func, args, *kwargs in subject.calls():
        with torch.no_grad(), _Recorder() as recorder:
            func(*args, **(kwargs[0] if kwargs else {}))
        found.append(recorder.calls)
    return found


def _own(subject: Subject) -> Iterator[tuple[_Call, list[Consumption]]]:
    """Yield the calls of the operation itself, and what weights they consume."""
    table, name = _table(subject), subject.entry.name
    for seen in _given(subject):
        for call in seen:
            if call.op_type is not None and table.spelled(call.op_type) == name:
                found = table.consumptions(name, call.func, call.args, call.kwargs)
                demand(subject, found, f"in a call with {_shapes(call)} no weight is consumed")
                yield call, found


def _shapes(call: _Call) -> str:
    shapes = [str(tuple(x.shape)) for x in tensors((call.args, dict(call.kwargs)))]
    return f"tensors of {', '.join(shapes) or 'no'} shape"


@check(OPERATION)
def names(subject: Subject) -> None:
    """Its name and its aliases are no other operation's."""
    own = {subject.entry.name, *subject.entry.aliases}
    for item in get_catalog().operations:
        if item.entry.name != subject.entry.name:
            both = own & {item.entry.name, *item.entry.aliases}
            demand(subject, not both, f"{', '.join(sorted(both))} is what {item} goes by")


@check(OPERATION, applies=_looks)
def called(subject: Subject) -> None:
    """Its calls are seen under its name, or under one of its aliases."""
    table = _table(subject)
    for seen in _given(subject):
        found = [call.op_type for call in seen if call.op_type is not None]
        demand(
            subject,
            any(table.spelled(name) == subject.entry.name for name in found),
            f"a call is seen as {', '.join(map(repr, found)) or 'nothing'}",
        )


@check(OPERATION, applies=_looks)
def axis(subject: Subject) -> None:
    """The output-channel axis of a weight is one of the axes that its inputs leave to outputs."""
    table = _table(subject)
    for call, consumed in _own(subject):
        for item in consumed:
            found = table.channel_axis_in(
                subject.entry.name, call.func, call.args, call.kwargs, item.weight
            )
            demand(
                subject,
                found in item.view.rows,
                f"the axis of a weight of shape {tuple(item.weight.shape)} is {found}, and "
                f"its outputs are on {item.view.rows}",
            )


@check(OPERATION, applies=_looks)
def inputs(subject: Subject) -> None:
    """A change of a weight changes the squared outputs in proportion to what inputs predict."""
    for call, consumed in _own(subject):
        for item in consumed:
            before = call.run()
            ratios = []
            for change in _changes(item.weight.detach()):
                after = call.run(item.weight, item.weight.detach() + change)
                predicted = _predicted(item, change)
                error = float((after - before).square().sum())
                if predicted == 0 and error == 0:
                    continue  # what no input meets
                demand(
                    subject,
                    predicted > 0,
                    f"no change of outputs is predicted in a call with {_shapes(call)}",
                )
                ratios.append(error / predicted)
            demand(subject, ratios, f"no input meets the weight in a call with {_shapes(call)}")
            apart = max(ratios) - min(ratios)
            demand(
                subject,
                apart <= _TOLERANCE * max(ratios),
                f"squared outputs change by {min(ratios):.3g} to {max(ratios):.3g} times what the "
                f"inputs of a weight of shape {tuple(item.weight.shape)} predict",
            )


def _changes(weight: Tensor) -> Iterator[Tensor]:
    """Yield changes of all of a weight, and of one place along each of its axes."""
    noise = draw(*weight.shape, seed=3).to(weight.dtype)
    yield noise
    for axis, extent in enumerate(weight.shape):
        for at in {0, extent - 1}:
            one = torch.zeros_like(noise)
            one.select(axis, at).copy_(noise.select(axis, at))
            yield one


def _predicted(item: Consumption, change: Tensor) -> float:
    """Return Σ |ΔW x|² over all input vectors."""
    shape, groups = tuple(change.shape), item.view.groups()
    matrix = InputMoments(torch.zeros(groups, 1), BlockLayout(shape, shape), 1, item.view.rows)
    cut = matrix.to_matrices(change.double())  # [G, R, C]
    total = 0.0
    for first, vectors in item.view.vectors(item.raw):
        x = vectors.double()
        mine = cut[first : first + x.shape[0]]
        if item.view.is_diagonal:
            total += float((mine.square().sum(1) * x.sum(2)).sum())
        else:
            total += float((mine @ x).square().sum())
    return total


@check(OPERATION, applies=_looks)
def pure(subject: Subject) -> None:
    """Nothing in a call is written to when it is looked at."""
    table, name = _table(subject), subject.entry.name
    for call, _ in _own(subject):
        there = list(tensors((call.args, dict(call.kwargs))))
        before = [bits(tensor) for tensor in there]
        for item in table.consumptions(name, call.func, call.args, call.kwargs):
            table.channel_axis_in(name, call.func, call.args, call.kwargs, item.weight)
            list(item.view.vectors(item.raw))
        after = [bits(tensor) for tensor in there]
        demand(subject, before == after, f"looking at a call with {_shapes(call)} changes it")
