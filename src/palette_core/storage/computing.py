"""Outputs of layers of a finalized model, straight from their packed weights.

`model.parametrization` asks before it lets a layer read the dense weight. The answer is no where
anything watches, records or replaces torch's own operations: these then see the operator that
decodes, and the layer's own operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from palette_core.storage.forms.lookup import DEFAULT_FORM
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
    if isinstance(layer, nn.Embedding):
        return None if layer.max_norm is not None else _embedding_output(packed, given)
    bias: Any = layer.bias
    return linear_output(packed, given, bias)


def linear_output(packed: PackedWeight, given: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return ``given @ weight.T + bias``, or None: it is to decode the weight.

    Raises:
        WeightFileError: the file that the weight is mapped from is missing or damaged.
    """
    if is_watched(packed) or not _is_usual(given):
        return None
    stored = _checked(packed)
    if not _match(stored, given, bias):
        return None
    return _multiplied(stored, given, bias, torch.compiler.is_compiling())


def _embedding_output(packed: PackedWeight, given: Tensor) -> Tensor | None:
    if is_watched(packed) or not _is_usual(given):
        return None
    return _embedded(_checked(packed), given, torch.compiler.is_compiling())


def _checked(packed: PackedWeight) -> StoredTensor:
    if not torch.compiler.is_compiling():
        packed.check_file()
    return packed.stored()


def _embedded(stored: StoredTensor, given: Tensor, compiled: bool) -> Tensor | None:
    if given.dtype not in (torch.int64, torch.int32):
        return None
    if compiled:
        rows: Tensor = operators.palettized_embedding(given, *stored.arguments())
        return rows
    return operators.embedded_rows(given, stored)


def _match(stored: StoredTensor, given: Tensor, bias: Tensor | None) -> bool:
    """Return whether input and bias suit the weight; of others torch says what is wrong."""
    if given.dtype is not stored.dtype or given.dim() == 0 or given.shape[-1] != stored.shape[-1]:
        return False
    return bias is None or (
        bias.dtype is stored.dtype
        and bias.device.type == "cpu"
        and bias.dim() == 1
        and bias.shape[0] == stored.shape[0]
    )


def _multiplied(stored: StoredTensor, given: Tensor, bias: Tensor | None, compiled: bool) -> Tensor:
    recorded = torch.is_grad_enabled() and (
        given.requires_grad or (bias is not None and bias.requires_grad)
    )
    if compiled or recorded:
        product: Tensor = operators.palettized_linear(given, *stored.arguments(), bias)
        return product
    return operators.linear_product(given, stored, bias)


def is_watched(packed: PackedWeight) -> bool:
    """Return whether operations with a weight are somebody else's business than ours.

    Also where its stored form, or where it is, leaves nothing to gain.
    """
    if packed.form.name != DEFAULT_FORM or packed.lut.device.type != "cpu":
        return True
    if _is_transformed() or _takes_gradients(packed):
        return True
    if torch.compiler.is_compiling():
        return packed.traced_as is not None or torch.compiler.is_exporting()
    return bool(
        torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or _C._len_torch_dispatch_stack()
        or _C._len_torch_function_stack()
        or torch._ops._len_torch_dispatch_stack_pre_dispatch()  # type: ignore[no-untyped-call]
    )


def _is_usual(given: Any) -> bool:
    if not isinstance(given, Tensor) or given.is_nested:  # proxies of torch.fx are no tensors
        return False
    return given.device.type == "cpu" and (torch.compiler.is_compiling() or type(given) is Tensor)


def _is_transformed() -> bool:
    """Return whether torch makes other operations of those that are called; also in a graph."""
    return (
        torch.is_autocast_enabled("cpu")
        or _C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def _takes_gradients(packed: PackedWeight) -> bool:
    """Return whether somebody trains the tables or factors."""
    tables = (packed.lut, packed.lut_scale, packed.scale)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tables)
