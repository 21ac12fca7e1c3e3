"""Products with matrices: ``linear``, ``matmul`` and its kin, and products of experts."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from palette_core.plugins import Consumption, Operation, OperationCall
from palette_core.tensors import Contraction, Features, InputView


class Linear(Operation):
    """``x @ W.T + b``."""

    def consumptions(self, call: OperationCall) -> Iterator[Consumption]:
        """Yield the weight."""
        yield Consumption(call["weight"], (call["input"],), Features())


class Product(Operation):
    """A product of two factors, either of which may be the weight."""

    def consumptions(self, call: OperationCall) -> Iterator[Consumption]:
        """Yield both factors, as far as they are matrices or stacks of matrices."""
        left, right = _factors(call)
        for weight, x, view in (
            (right, left, _of_right(right, left)),
            (left, right, _of_left(left, right)),
        ):
            if view is not None:
                yield Consumption(weight, (x,), view)


class GroupedProduct(Operation):
    """Runs of rows of the left factor times one matrix each of the right one.

    `torch.nn.functional.grouped_mm`: ``offs[i]`` is where the run of matrix i ends.
    """

    def consumptions(self, call: OperationCall) -> Iterator[Consumption]:
        """Yield the right factor ``[E, in, out]``."""
        x, weight = call["mat_a"], call.get("mat_b", call.get("mat2"))
        ends = call.get("offs")
        if weight.dim() != 3:
            return
        if x.dim() == 3:
            view = _of_right(weight, x)
            if view is not None:
                yield Consumption(weight, (x,), view)
        elif ends is not None:
            stops = ends.tolist()
            runs = tuple(x[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True))
            yield Consumption(weight, runs, Features(parts=len(runs), rows=(2,)))


def _factors(call: OperationCall) -> tuple[Tensor, Tensor]:
    pairs = (("input", "other"), ("mat1", "mat2"), ("batch1", "batch2"), ("input", "mat2"))
    for left, right in pairs:
        if left in call.arguments and right in call.arguments:
            return call[left], call[right]
    raise KeyError("other")


def _of_right(weight: Tensor, x: Tensor) -> InputView | None:
    """Return how the left factor is seen by a right one ``[in, out]`` or ``[E, in, out]``."""
    if weight.dim() == 2:
        return Features(rows=(1,))
    if weight.dim() != 3 or x.dim() < 1:
        return None
    if x.dim() < 3 or x.shape[-3] == 1:  # every matrix gets the same rows
        return Features(rows=(0, 2))
    if weight.shape[0] == 1:
        return Features(rows=(2,))
    return Contraction((-1,), weight.shape[0], batch=-3, rows=(2,))


def _of_left(weight: Tensor, x: Tensor) -> InputView | None:
    """Return how the right factor is seen by a left one ``[out, in]`` or ``[E, out, in]``."""
    column = -2 if x.dim() > 1 else -1
    if weight.dim() == 2:
        return Contraction((column,))
    if weight.dim() != 3:
        return None
    if x.dim() < 3 or x.shape[-3] == 1:
        return Contraction((column,), rows=(0, 1))
    if weight.shape[0] == 1:
        return Contraction((column,), rows=(1,))
    return Contraction((column,), weight.shape[0], batch=-3, rows=(1,))
