"""Everything of a model that a calibration must leave as it was, or keep from collecting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Set
from typing import Any

import torch
from torch import Tensor, nn

from palette_core._common.undoing import undone
from palette_core.model.isolation import restored_values
from palette_core.storage.packed_weight import PaletteModule

# Gradients of this many elements cost nothing worth mentioning.
_SMALL = 1 << 16


@contextlib.contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore buffers, flags for training and for gradients, and gradients, on the way out.

    Palettes are left alone: no run of the model changes them.

    Yields:
        what puts the buffers back at once.
    """
    modules = [(module, module.training) for module in model.modules()]
    tensors = [
        (parameter, parameter.requires_grad, parameter.grad)
        for parameter in model.parameters()
        if not parameter.is_inference()  # these take no flag
    ]
    # Values of buffers: their count is no reason to worry, palettes excepted.
    others = [module for module, _ in modules if not isinstance(module, PaletteModule)]
    with (
        restored_values(others) as restore,
        undone(tensors, lambda item: _put_back(*item)),
        undone(modules, lambda item: setattr(item[0], "training", item[1])),
    ):
        try:
            yield restore
        finally:
            torch.clear_autocast_cache()


def _put_back(parameter: nn.Parameter, flag: bool, gradient: Tensor | None) -> None:
    parameter.requires_grad_(flag)
    parameter.grad = gradient


@contextlib.contextmanager
def no_gradients_of_others(model: nn.Module, palettized: Set[int]) -> Iterator[None]:
    """Keep parameters that are not palettized from collecting gradients.

    Large ones are switched off. Small ones and embeddings keep the flag that the user gave them,
    because gradients may have to flow from there: reentrant checkpoints pass none on unless an
    input of theirs requires one. What arrives at these is freed at once.

    Args:
        model: whose flags `left_as_it_was` restores.
        palettized: ids of the dense originals, which are measured through aliases.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for parameter in module.parameters(recurse=False)
    }
    handles: list[Any] = []
    with undone(handles, lambda handle: handle.remove()):
        for parameter in model.parameters():
            fixed = not parameter.requires_grad or parameter.is_inference()
            if id(parameter) in palettized or fixed:
                continue
            if id(parameter) in embeddings or parameter.numel() <= _SMALL:
                parameter.grad = None
                hook = parameter.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]
                handles.append(hook)
            else:
                parameter.requires_grad_(False)
        yield


@contextlib.contextmanager
def differentiable_recurrence(model: nn.Module) -> Iterator[None]:
    """Let cuDNN differentiate recurrent layers in evaluation mode, which it refuses.

    In training mode without dropout they compute the same.
    """
    layers = [
        (module, module.dropout)
        for module in model.modules()
        if isinstance(module, nn.RNNBase) and not module.training and _on_cuda(module)
    ]
    modules = [layer for layer, _ in layers]
    with undone(layers, lambda item: _set_flags(item[0], False, item[1])):
        for layer in modules:
            _set_flags(layer, True, 0.0)
        yield


def _set_flags(layer: nn.RNNBase, training: bool, dropout: float) -> None:
    layer.training, layer.dropout = training, dropout


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _on_cuda(module: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in module.parameters())
