"""Convolutions and transposed ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from palette_core.builtins.operations.windows import Windows
from palette_core.plugins import Consumption, Operation, OperationCall


class Convolution(Operation):
    """``conv1d``, ``conv2d`` and ``conv3d``."""

    def consumptions(self, call: OperationCall) -> Iterator[Consumption]:
        """Yield the weight, which is multiplied with windows of the input."""
        weight = call["weight"]
        kernel = tuple(weight.shape[2:])
        dilation = _by_axis(call.get("dilation", 1), len(kernel))
        view = Windows(
            weight.shape[1],
            kernel,
            _by_axis(call.get("stride", 1), len(kernel)),
            dilation,
            _padding(call.get("padding", 0), kernel, dilation),
            int(call.get("groups", 1)),
        )
        yield Consumption(weight, (call["input"],), view)


class TransposedConvolution(Operation):
    """``conv_transpose1d``, ``conv_transpose2d`` and ``conv_transpose3d``."""

    def consumptions(self, call: OperationCall) -> Iterator[Consumption]:
        """Yield the weight, as that of the ordinary convolution that this one is."""
        weight = call["weight"]
        kernel = tuple(weight.shape[2:])
        rank = len(kernel)
        groups = int(call.get("groups", 1))
        dilation = _by_axis(call.get("dilation", 1), rank)
        cut = _by_axis(call.get("padding", 0), rank)
        more = _by_axis(call.get("output_padding", 0), rank)
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
            stuffing=_by_axis(call.get("stride", 1), rank),
            rows=(1,),
        )
        yield Consumption(weight, (call["input"],), view)


def _by_axis(value: Any, rank: int) -> tuple[int, ...]:
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
    return tuple((p, p) for p in _by_axis(value, len(kernel)))
