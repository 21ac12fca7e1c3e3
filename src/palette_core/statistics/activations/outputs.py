"""Outputs of the unchanged model that say what its inputs would, where they are smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palette_core.plugins import Consumption
from palette_core.tensors.input_views import InputView

_LOOKED_AT = 16  # vectors that tell what is added to all outputs
_ROUNDING = 1e-4  # of the size of the products that outputs are sums of


def are_smaller(view: InputView, shape: Sequence[int], inputs: Sequence[torch.Size]) -> bool:
    """Return whether outputs of a weight are known by vector, and take less than half.

    Args:
        view: how the weight's inputs are seen.
        shape: of the weight.
        inputs: shapes of its inputs.
    """
    size = sum(each.numel() for each in inputs)
    if not view.by_outputs or len(shape) != 2 or size == 0:
        return False
    return bool(2 * shape[0] < shape[1] and math.prod(shape) > 0)


@dataclass(frozen=True)
class Noted:
    """Outputs of a call, and what tells how they are made of its inputs.

    Attributes:
        weight: of the call, ``[R, C]``.
        outputs: a copy, ``[T, R]`` float32.
        places: of some vectors, ``[n]``.
        rows: these vectors, ``[n, C]`` float32.
    """

    weight: Tensor
    outputs: Tensor
    places: Tensor
    rows: Tensor


def note(what: Consumption, out: Any) -> Noted | None:
    """Return what `plain_outputs` needs, in no products: each thread would hold room for them.

    Args:
        what: the call, of a view ``by_outputs``.
        out: what it returned.

    Returns:
        None where outputs are not as exact, or not one for each vector.
    """
    exact = [isinstance(x, Tensor) and x.dtype == torch.float32 for x in (what.weight, out)]
    if not all(exact) or any(x.dtype != torch.float32 for x in what.raw):
        return None
    made, x = what.view.outputs(out.detach()), vectors_of(what.raw)
    if made is None or made.shape != (len(x), what.weight.shape[0]) or len(x) == 0:
        return None
    places = torch.linspace(0, len(x) - 1, _LOOKED_AT, dtype=torch.float64).long().to(x.device)
    return Noted(what.weight.detach(), made.clone(), places, x[places].detach())


def plain_outputs(noted: Noted) -> Tensor | None:
    """Return W x of every input vector x of a call, ``[T, R]`` float32 on the CPU.

    What the call has added to all of them, such as a bias, is found from some vectors and taken
    away. None where outputs are something else. Uses up what was noted.
    """
    rows, weight = noted.rows, noted.weight
    added = noted.outputs[noted.places] - rows @ weight.mT
    size = rows.abs() @ weight.abs().mT + added.abs()
    usual = added.mean(dim=0)
    if not bool(((added - usual).abs() <= _ROUNDING * size).all()):
        return None
    return noted.outputs.sub_(usual).cpu()


def products_with(weight: Tensor, raw: tuple[Tensor, ...]) -> Tensor:
    """Return W x of every vector of the inputs, ``[T, R]`` float32."""
    return vectors_of(raw).detach().cpu().float() @ weight.detach().cpu().float().mT


def vectors_of(raw: tuple[Tensor, ...]) -> Tensor:
    """Return the input vectors, ``[T, C]``, of a view ``by_outputs``."""
    return raw[0].reshape(-1, raw[0].shape[-1])
