"""The torch operators that compute with a packed weight and make no dense one of it.

``palette_core::palettized_linear`` and ``palette_core::palettized_embedding`` stand for a layer in
eager execution and in graphs of ``torch.compile``. Exported programs and traces hold
``palette_core::depalettize`` and the layer's own operation instead, which runtimes know.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from palette_core.errors import TrainingError
from palette_core.tensors.operators import depalettize
from palette_core.tensors.stored import INDICES, StoredTensor, operator_signature

_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD
_INPUT = inspect.Parameter("input", _KIND, annotation=Tensor)
_BIAS = inspect.Parameter("bias", _KIND, annotation=Tensor | None, default=None)
_COUNT = len(INDICES) + len(StoredTensor._fields)  # arguments before the bias


def linear_product(x: Tensor, stored: StoredTensor, bias: Tensor | None) -> Tensor:
    """Return ``x @ weight.T + bias``, without a graph.

    Args:
        x: ``[..., in]`` in the weight's dtype.
        stored: of ``[out, in]``, in the form of dense indices.
        bias: ``[out]``, or None.
    """
    from palette_core.tensors import products  # imports numba

    found = products.linear(x, stored, bias)
    return linear(x, depalettize(*stored.arguments()), bias) if found is None else found


def embedded_rows(indices: Tensor, stored: StoredTensor) -> Tensor:
    """Return the rows ``[..., values]`` of a weight ``[count, values]`` that ``indices`` pick.

    Args:
        indices: integers ``[...]``.
        stored: the weight, in the form of dense indices.

    Raises:
        IndexError: one of them is no row.
    """
    from palette_core.tensors import products  # imports numba

    found = products.embedding(indices, stored)
    return embedding(indices, depalettize(*stored.arguments())) if found is None else found


def _read(arguments: Sequence[Any], named: dict[str, Any]) -> tuple[Tensor, StoredTensor, Any]:
    """Return input, weight and bias of a call; those left out have their defaults."""
    given = dict(named)
    first = arguments[0] if arguments else given.pop("input")
    bias = arguments[_COUNT] if len(arguments) > _COUNT else given.pop("bias", None)
    return first, StoredTensor.from_arguments(arguments[1:_COUNT], given), bias


def _run_linear(*arguments: Any, **named: Any) -> Tensor:
    return linear_product(*_read(arguments, named))


def _fake_linear(*arguments: Any, **named: Any) -> Tensor:
    x, stored, _ = _read(arguments, named)
    return x.new_empty((*x.shape[:-1], stored.shape[0]))


def _run_embedding(*arguments: Any, **named: Any) -> Tensor:
    indices, stored, _ = _read(arguments, named)
    return embedded_rows(indices, stored)


def _fake_embedding(*arguments: Any, **named: Any) -> Tensor:
    indices, stored, _ = _read(arguments, named)
    return stored.lut.new_empty((*indices.shape, stored.shape[1]), dtype=stored.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    if any(ctx.needs_input_grad[1:_COUNT]):
        raise TrainingError(
            "palette_core::palettized_linear takes no gradients for tables and scales; use "
            "linear(x, depalettize(…)) of detached ones, or a prepared model"
        )
    ctx.save_for_backward(*[part for part in inputs[1:_COUNT] if isinstance(part, Tensor)])
    ctx.others = [None if isinstance(part, Tensor) else (part,) for part in inputs[1:_COUNT]]


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    tensors = iter(ctx.saved_tensors)
    arguments = [next(tensors) if other is None else other[0] for other in ctx.others]
    needed = ctx.needs_input_grad  # of the arguments that the call gave
    gradients: list[Tensor | None] = [None] * len(needed)
    if needed[0]:
        gradients[0] = gradient @ depalettize(*arguments)
    if needed[_COUNT:] == (True,):
        gradients[_COUNT] = gradient.reshape(-1, gradient.shape[-1]).sum(0)
    return tuple(gradients)


_run_linear.__signature__ = operator_signature(INDICES, _INPUT, after=[_BIAS])  # type: ignore[attr-defined]
_run_embedding.__signature__ = operator_signature(INDICES, _INPUT)  # type: ignore[attr-defined]

palettized_linear = torch.library.custom_op(
    "palette_core::palettized_linear", _run_linear, mutates_args=()
)
palettized_linear.register_fake(_fake_linear)
palettized_linear.register_autograd(_gradients, setup_context=_keep)
palettized_embedding = torch.library.custom_op(
    "palette_core::palettized_embedding", _run_embedding, mutates_args=()
)
palettized_embedding.register_fake(_fake_embedding)
