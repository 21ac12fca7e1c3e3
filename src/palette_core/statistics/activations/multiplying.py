"""Products of the input vectors of one call of an operation, in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palette_core.plugins import Consumption
from palette_core.statistics.activations.running import Products, Running, difference
from palette_core.tensors.input_views import InputView, PartialSums

_GLANCE = 4096  # values of an input that are looked at for a change before all of them


def multiply(
    what: Consumption,
    weights: Tensor | None,
    before: tuple[Tensor, ...] | None,
    matrix: Tensor | None = None,
    running: Running | None = None,
    outputs: Tensor | None = None,
) -> tuple[Products | PartialSums | None, int]:
    """Multiply the input vectors of one call, and return how many there were, too.

    Args:
        what: the call.
        weights: how often each vector counts, see `Accumulator.add`.
        before: the input in the unchanged model, if d is of interest.
        matrix: ``[G, R, C]`` float32, W: multiply d with it first, where d is needed as vectors.
        running: sums of earlier calls that the products may be added to; returned is None where
            they are.
        outputs: ``[T, R]`` float32, what W made of the input in the unchanged model, in place of
            ``before``; of a view ``by_outputs``, and without ``weights``.
    """
    view = what.view
    if view.is_diagonal:
        counts = _count(view, what.raw)
        return Products(counts), int(counts.sum())
    if before is not None and not _has_changed(before, what.raw):
        before = None  # before any palette
    moved = None
    if before is not None and weights is None and matrix is not None:
        both = view.products_and_moved(what.raw, before, matrix)
        if both is not None:
            return Products(both[0], None, both[1]), both[2]
    if weights is None and not view.goes_by_vectors(what.raw):
        gap = None if before is None else _gap(before, what.raw)
        partial = view.partial(what.raw, gap)
        if partial is not None:
            return partial
        if gap is not None and matrix is not None:
            moved = view.moved(what.raw, gap, matrix)
            gap = gap if moved is None else None
        made = view.products(what.raw, gap)
        if made is not None:
            return Products(*made[:2], moved), made[2]
        before = before if moved is None else None
    through = matrix if weights is None and moved is None else None
    found: list[Products] = []
    sums = Running(lambda made: _add_to(found, made)) if running is None else running
    if moved is not None:
        sums.add_moved(moved)
    count = _by_vectors(what, weights, before, through, sums, outputs)
    if running is not None:
        return None, count
    sums.flush()
    return found[0] if found else Products(torch.zeros(1, 1, dtype=torch.float64)), count


def _has_changed(before: tuple[Tensor, ...], raw: tuple[Tensor, ...]) -> bool:
    return any(_differ(b.detach(), x.detach()) for b, x in zip(before, raw, strict=True))


def _differ(a: Tensor, b: Tensor) -> bool:
    # Most inputs have changed from the first values on: then the rest need not be read.
    alike = a.dtype == b.dtype
    return not (alike and torch.equal(_first(a), _first(b)) and torch.equal(a, b))


def _first(x: Tensor) -> Tensor:
    while x.dim() > 1 and x.numel() > _GLANCE:
        x = x[0]
    return x[:_GLANCE] if x.dim() else x


def _gap(before: tuple[Tensor, ...], raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return d in float32, good until the next call."""
    return tuple(
        difference(f"gap {n}", b.float(), x)
        if x.device.type == "cpu"
        else b.detach().float() - x.detach().float()
        for n, (b, x) in enumerate(zip(before, raw, strict=True))
    )


def _by_vectors(
    what: Consumption,
    weights: Tensor | None,
    before: tuple[Tensor, ...] | None,
    through: Tensor | None,
    running: Running,
    outputs: Tensor | None,
) -> int:
    """Add Σ x xᵀ, Σ d xᵀ or Σ W d xᵀ where W is ``through``, and return the number of vectors.

    With ``outputs`` also Σ W x_before xᵀ.
    """
    view = what.view
    at = count = 0
    n_groups = view.groups() if view.only() is None else 1
    befores = None if before is None else view.vectors(before)
    for first, there in view.vectors(what.raw):
        x = there.cpu()
        other = None if befores is None else next(befores)[1].cpu()
        if weights is None:
            own = None if through is None else through[first : first + x.shape[0]]
            made = None if outputs is None else outputs[at : at + x.shape[2]].mT[None]
            running.add(x, first, n_groups, None, other, own, made)
        else:  # there is one group of the view, and several of outputs
            counts = weights[:, at : at + x.shape[2]]
            running.add(x, 0, n_groups * weights.shape[0], counts, other, None)
        at += x.shape[2]
        count += x.shape[0] * x.shape[2]
    # Of all matrices together; experts get different numbers of vectors.
    return -(-count // n_groups)


def _add_to(found: list[Products], made: Products) -> None:
    """Add up in float64; what is alone stays as it is, which takes half the memory."""
    if found:
        made = Products(*map(_plus, found[0], made))
    found[:] = [made]


def _plus(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a.double().add_(b)


def _count(view: InputView, raw: tuple[Tensor, ...]) -> Tensor:
    """Return Σ x of one-hot vectors as ``[1, C]``."""
    return torch.cat([x.cpu().double() for _, x in view.vectors(raw)], dim=2).sum(dim=2)
