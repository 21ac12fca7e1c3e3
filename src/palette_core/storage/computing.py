"""Outputs of layers of a finalized model, straight from their packed weights.

`model.parametrization` asks before it lets a layer read the dense weight. The answer is no where
anything watches, records or replaces torch's own operations: these then see the operator that
decodes, and the layer's own operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from palette_core.storage.forms.registry import DEFAULT_FORM
from palette_core.tensors import product_operators as operators
from palette_core.tensors.stored import StoredTensor

if TYPE_CHECKING:
    from palette_core.storage.packed_weight import PackedWeight

_C = torch._C


def layer_output(packed: PackedWeight, layer: nn.Module, given: Tensor) -> Tensor | None:
    """Return the output of a linear or an embedding layer, or None: it is to decode the weight.

    Args:
        packed: stands for the layer's weight, alone.
        layer: an `nn.Linear` or `nn.Embedding`, or what inherits its forward.
        given: its input.

    Raises:
        WeightFileError: the file that the weight is mapped from is missing or damaged.
    """
    if packed.form.name != DEFAULT_FORM or not _may_compute(packed, given):
        return None
    compiled = torch.compiler.is_compiling()
    if not compiled:
        packed.check_file()
    stored = packed.stored()
    if isinstance(layer, nn.Embedding):
        return None if layer.max_norm is not None else _embedded(stored, given, compiled)
    bias: Any = layer.bias
    return _multiplied(stored, given, bias, compiled) if given.dtype is stored.dtype else None


def _embedded(stored: StoredTensor, given: Tensor, compiled: bool) -> Tensor | None:
    if given.dtype not in (torch.int64, torch.int32):
        return None
    if compiled:
        rows: Tensor = operators.palettized_embedding(given, *stored.arguments())
        return rows
    return operators.embedded_rows(given, stored)


def _multiplied(
    stored: StoredTensor, given: Tensor, bias: Tensor | None, compiled: bool
) -> Tensor | None:
    if given.dim() == 0 or given.shape[-1] != stored.shape[-1]:
        return None
    recorded = torch.is_grad_enabled() and (
        given.requires_grad or (bias is not None and bias.requires_grad)
    )
    if compiled or recorded:
        product: Tensor = operators.palettized_linear(given, *stored.arguments(), bias)
        return product
    return operators.linear_product(given, stored, bias)


def _may_compute(packed: PackedWeight, given: Tensor) -> bool:
    """Return whether a layer's operation is nobody's business but ours."""
    if given.device.type != "cpu" or packed.lut.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling():
        return packed.traced_as is None and not torch.compiler.is_exporting()
    return (
        type(given) is Tensor
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and _C._len_torch_dispatch_stack() == 0
        and _C._len_torch_function_stack() == 0
        and _C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )
