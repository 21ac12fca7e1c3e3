"""Run a model so that it is afterwards as it was before."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from palette_core._common.undoing import undone
from palette_core.model.states import is_lazy


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation, and back to the mode it was in."""
    # The flags themselves: train() and eval() may be the model's own, and do more, or refuse.
    flags = [(module, module.training) for module in model.modules()]
    modules = [module for module, _ in flags]
    with undone(flags, lambda item: _set_mode(*item)):
        for module in modules:
            _set_mode(module, False)
        yield


def _set_mode(module: nn.Module, flag: bool) -> None:
    own = vars(module)
    if "training" in own and not isinstance(module, torch.jit.ScriptModule):
        own["training"] = flag  # many modules; nn.Module's own setattr is slow
    else:
        module.training = flag


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run compiled modules as they were written, not what the compiler made of them."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled; importing it takes long
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def restored_values(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo what the run does to buffers of ``modules``, such as counters and caches."""
    saved = [
        (states, name, tensor, _copy_of(tensor))
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
        for states, name, tensor in _changeable(module)
    ]
    with undone(saved, lambda item: _put_back(*item)):
        yield


def _put_back(
    states: dict[str, Any], name: str, tensor: Tensor | None, copy: tuple[Tensor, int | None] | None
) -> None:
    states[name] = tensor
    if tensor is not None and copy is not None:
        _restore(tensor, *copy)


def _changeable(
    module: nn.Module,
) -> Iterator[tuple[dict[str, Any], str, Tensor | None]]:
    """Yield what a run in evaluation mode may change; lazy buffers get their shape in it."""
    for name, buffer in module._buffers.items():
        if buffer is None or not is_lazy(buffer):
            yield module._buffers, name, buffer
    if getattr(module, "max_norm", None) is not None:  # embeddings that renormalise on look-up
        for name, parameter in module._parameters.items():
            yield module._parameters, name, parameter


def _copy_of(tensor: Tensor | None) -> tuple[Tensor, int | None] | None:
    if tensor is None:
        return None
    return tensor.clone(), None if tensor.is_inference() else tensor._version


def _restore(tensor: Tensor, copy: Tensor, version: int | None) -> None:
    # Writes through .data leave the version as it is, so values count too, where they compare.
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    comparable = plain and tensor.layout is torch.strided and not tensor.is_meta
    if (version is None or tensor._version == version) and (
        not comparable or torch.equal(tensor, copy)
    ):
        return
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        tensor.copy_(copy)
