"""Which input vectors an operation multiplies which of its weights with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from palette_core.statistics.activations.views import Features, Lookup, View, Windows


@dataclass(frozen=True)
class Consumption:
    """One weight in one call of an operation.

    Attributes:
        weight: as the operation received it.
        raw: what it is multiplied with, as the operation received it.
        view: how that is seen as vectors.
    """

    weight: Tensor
    raw: tuple[Tensor, ...]
    view: View


Call = Callable[..., Any]
_Bound = dict[str, Any]


def consumptions(
    op_type: str, func: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[Consumption]:
    """Yield what a call consumes; nothing from operations that are not known here."""
    known = _KNOWN.get(op_type)
    if known is None:
        return
    names, read = known
    bound = {**dict(zip(names, args, strict=False)), **kwargs}
    yield from read(bound, func)


def _linear(bound: _Bound, func: Call) -> Iterator[Consumption]:
    del func
    yield Consumption(bound["weight"], (bound["input"],), Features())


def _product(bound: _Bound, func: Call) -> Iterator[Consumption]:
    """A product whose right factor is the weight."""
    del func
    weight = bound.get("other", bound.get("mat2"))
    left = bound.get("input", bound.get("self"))
    if isinstance(weight, Tensor) and isinstance(left, Tensor) and weight.dim() == 2:
        yield Consumption(weight, (left,), Features(transposed=True))


def _sum_and_product(bound: _Bound, func: Call) -> Iterator[Consumption]:
    del func
    yield Consumption(bound["mat2"], (bound["mat1"],), Features(transposed=True))


def _embedding(bound: _Bound, func: Call) -> Iterator[Consumption]:
    del func
    pair = [bound["first"], bound["second"]] if "first" in bound else []
    pair += [bound[name] for name in ("input", "weight", "indices") if name in bound]
    tensors = [x for x in pair if isinstance(x, Tensor)]
    # torch.embedding and functional.embedding take the two in opposite orders.
    indices = [x for x in tensors if not x.is_floating_point()]
    weights = [x for x in tensors if x.is_floating_point()]
    if len(indices) == 1 and len(weights) == 1:
        yield Consumption(weights[0], (indices[0],), Lookup(weights[0].shape[0]))


def _convolution(bound: _Bound, func: Call) -> Iterator[Consumption]:
    del func
    weight = bound["weight"]
    kernel = tuple(weight.shape[2:])
    rank = len(kernel)
    stride = _tuple(bound.get("stride", 1), rank)
    dilation = _tuple(bound.get("dilation", 1), rank)
    padding = _padding(bound.get("padding", 0), kernel, dilation)
    view = Windows(weight.shape[1], kernel, stride, dilation, padding, int(bound.get("groups", 1)))
    yield Consumption(weight, (bound["input"],), view)


def _transposed(bound: _Bound, func: Call) -> Iterator[Consumption]:
    del func
    weight = bound["weight"]
    kernel = tuple(weight.shape[2:])
    rank = len(kernel)
    groups = int(bound.get("groups", 1))
    dilation = _tuple(bound.get("dilation", 1), rank)
    cut = _tuple(bound.get("padding", 0), rank)
    more = _tuple(bound.get("output_padding", 0), rank)
    padding = tuple(
        (d * (k - 1) - p, d * (k - 1) - p + m)
        for d, k, p, m in zip(dilation, kernel, cut, more, strict=True)
    )
    view = Windows(
        weight.shape[0] // groups,
        kernel,
        (1,) * rank,
        dilation,
        padding,
        groups,
        stuffing=_tuple(bound.get("stride", 1), rank),
        transposed=True,
    )
    yield Consumption(weight, (bound["input"],), view)


def _attention(bound: _Bound, func: Call) -> Iterator[Consumption]:
    query, key, value = bound["query"], bound["key"], bound["value"]
    if bound.get("use_separate_proj_weight"):
        for name, x in (("q", query), ("k", key), ("v", value)):
            yield Consumption(bound[f"{name}_proj_weight"], (x,), Features())
    elif query is key and key is value:
        yield Consumption(bound["in_proj_weight"], (query,), Features())
    else:
        yield Consumption(bound["in_proj_weight"], (query, key, value), Features(parts=3))
    out = bound["out_proj_weight"]
    # What goes into the output projection shows when that is the identity.
    same = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
    seen = func(**{**bound, "out_proj_weight": same, "out_proj_bias": None})
    yield Consumption(out, (seen[0],), Features())


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    """Return one integer per spatial axis."""
    if isinstance(value, int):
        return (value,) * rank
    values = tuple(int(v) for v in value)
    return values * rank if len(values) == 1 else values


def _padding(
    value: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if value == "valid":
        value = 0
    if value == "same":
        both = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((n // 2, n - n // 2) for n in both)
    return tuple((p, p) for p in _tuple(value, len(kernel)))


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_T = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_KNOWN: dict[str, tuple[tuple[str, ...], Callable[[_Bound, Call], Iterator[Consumption]]]] = {
    "linear": (("input", "weight", "bias"), _linear),
    "matmul": (("input", "other"), _product),
    "mm": (("input", "mat2"), _product),
    "addmm": (("input", "mat1", "mat2"), _sum_and_product),
    "embedding": (("first", "second"), _embedding),
    **{f"conv{n}d": (_CONV, _convolution) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (_CONV_T, _transposed) for n in (1, 2, 3)},
    "multi_head_attention_forward": (
        tuple(inspect.signature(F.multi_head_attention_forward).parameters),
        _attention,
    ),
}
