"""A whole model put back as it was: for the time that code of others has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from palette_core.model.isolation import TensorValue
from palette_core.model.parametrization import ModuleSnapshot


@final
class ModelSnapshot:
    """Snapshot of everything of a model that code which is handed it may change.

    Modules, hooks, flags and other attributes come back, and parameters and buffers: the same
    tensors in the same memory, their gradients, and whether they take any. Values that somebody
    has written there come back for those tensors only that are copied. As a context, it puts
    everything back where the block fails or is interrupted.

    Args:
        model: the model.
        copied: tensors of it whose values are kept.
    """

    def __init__(self, model: nn.Module, copied: Iterable[Tensor] = ()) -> None:
        self._modules = ModuleSnapshot(model.modules())
        self._tensors = [_Memory(tensor) for tensor in (*model.parameters(), *model.buffers())]
        self._values = [TensorValue(tensor) for tensor in {id(t): t for t in copied}.values()]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None:
            self.restore()

    def restore(self) -> None:
        """Put everything back."""
        self._modules.restore()
        for tensor in self._tensors:
            tensor.restore()
        self.restore_values()

    def restore_values(self) -> None:
        """Put back the values that are kept."""
        for value in self._values:
            value.restored()


class _Memory:
    """Memory of a tensor, its gradient, and whether it takes one."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._held = tensor, tensor.detach()
        self._flag = tensor.requires_grad
        self._gradient = tensor.grad if tensor.is_leaf else None
        self._of_gradient = None if self._gradient is None else _Memory(self._gradient)

    def restore(self) -> None:
        tensor, held = self._tensor, self._held
        if tensor.is_inference():  # nobody can change these
            return
        if _place(tensor) != _place(held):
            tensor.data = held
        if tensor.is_leaf and tensor.requires_grad != self._flag:
            tensor.requires_grad_(self._flag)
        if self._of_gradient is not None:
            self._of_gradient.restore()  # casts of a model reach it too
        if tensor.is_leaf and tensor.grad is not self._gradient:
            tensor.grad = self._gradient


def _place(tensor: Tensor) -> tuple[object, ...]:
    if tensor.layout is not torch.strided or tensor.is_meta:
        return tensor.dtype, tensor.shape
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr()
