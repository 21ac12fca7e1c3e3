"""Sums of products by a formula: which axes of a weight are outputs, and which are summed over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from palette_core.plugins import Consumption, Operation, OperationCall
from palette_core.tensors import Contraction

_FORMULA = re.compile(r"[A-Za-z,]*(\.\.\.[A-Za-z,]*)*")


@dataclass(frozen=True)
class _Formula:
    """Labels by operand, and those of the output; ``...`` of an operand is one label, ``.``."""

    operands: tuple[Tensor, ...]
    labels: tuple[str, ...]
    output: str

    def place(self, weight: Tensor) -> int | None:
        found = (i for i, operand in enumerate(self.operands) if operand is weight)
        return next(found, None)

    def others(self, place: int) -> str:
        return "".join(self.labels[:place] + self.labels[place + 1 :])


class Einsum(Operation):
    """``torch.einsum`` with a formula; the form with lists of numbers is not looked at."""

    def channel_axis(self, call: OperationCall, weight: Tensor) -> int | None:
        """Return the first axis that goes to the output and stands in no other operand."""
        formula = _read(call)
        place = None if formula is None else formula.place(weight)
        if formula is None or place is None or "." in formula.labels[place]:
            return None
        own = formula.labels[place]
        outputs = set(formula.output) - set(formula.others(place))
        return next((axis for axis, label in enumerate(own) if label in outputs), None)

    def consumptions(self, call: OperationCall) -> Iterator[Consumption]:
        """Yield the operands of a product of two that are matrices, or stacks along axis 0."""
        formula = _read(call)
        if formula is None or len(formula.operands) != 2:
            return
        for place, weight in enumerate(formula.operands):
            view = _view(formula, place)
            if view is not None:
                yield Consumption(weight, (formula.operands[1 - place],), view)


def _read(call: OperationCall) -> _Formula | None:
    equation, operands = call.get("equation"), call.get("operands", ())
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or not all(isinstance(x, Tensor) for x in operands):
        return None
    left, arrow, output = equation.replace(" ", "").partition("->")
    labels = left.replace("...", ".").split(",")
    if not _FORMULA.fullmatch(left) or len(labels) != len(operands):
        return None
    if not arrow:  # by default labels that stand once, in alphabetical order
        every = "".join(labels).replace(".", "")
        output = "".join(sorted(label for label in set(every) if every.count(label) == 1))
        output = "." * ("." in left) + output
    return _Formula(tuple(operands), tuple(labels), output.replace("...", "."))


def _view(formula: _Formula, place: int) -> Contraction | None:
    """Return how the other operand is seen by the one at ``place``; None where it is no matrix."""
    own, other, output = formula.labels[place], formula.others(place), formula.output
    repeated = len(set(own)) < len(own) or len(set(other)) < len(other)
    summed_alone = set(own + other) - set(output) - (set(own) & set(other))
    if repeated or "." in own or summed_alone:
        return None
    shared = [axis for axis, label in enumerate(own) if label in other and label in output]
    rows = tuple(axis for axis, label in enumerate(own) if label not in other)
    columns = [label for label in own if label in other and label not in output]
    weight, x = formula.operands[place], formula.operands[1 - place]
    if shared not in ([], [0]) or not rows or not columns:
        return None
    # Counted from the end: the ellipsis may stand for any number of axes.
    at = {label: _axis(other, label, x.dim()) for label in other if label != "."}
    if any(x.shape[at[label]] != weight.shape[own.index(label)] for label in own if label in at):
        return None  # extents of 1 are broadcast
    summed = tuple(at[label] for label in columns)
    if shared:
        return Contraction(summed, weight.shape[0], at[own[0]], rows)
    return Contraction(summed, rows=rows)


def _axis(labels: str, label: str, rank: int) -> int:
    """Return the axis of a label, counted from the end."""
    at = labels.index(label)
    before_ellipsis = "." in labels and at < labels.index(".")
    return at - rank if before_ellipsis else at - len(labels)
