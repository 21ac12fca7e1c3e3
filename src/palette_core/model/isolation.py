"""Run a model so that it is afterwards as it was before."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palette_core._common.modules import modules_of, plain_tensors
from palette_core._common.undoing import undone
from palette_core.model.contents import Contents, same
from palette_core.model.hooked_weights import computed_once, is_replaceable
from palette_core.model.states import is_lazy


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Run a model in evaluation mode, as it is written, and leave it as it was.

    Weights that are computed are computed once. For what comes back see `restored_state`.

    Yields:
        what puts everything back at once, for the next of several runs to find it.
    """
    with (
        _evaluation_mode(model),
        computed_once(model),
        restored_state(modules_of(model)) as restore,
        parametrize.cached(),
        _uncompiled(),
    ):
        yield restore


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation, and back to the mode it was in."""
    # The flags themselves: train() and eval() may be the model's own, and do more, or refuse.
    flags = [(module, module.training) for module in modules_of(model)]
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


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run compiled modules as they were written, not what the compiler made of them."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled; importing it takes long
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def restored_values(modules: Iterable[nn.Module]) -> Iterator[Callable[[], None]]:
    """Undo what runs do to buffers of ``modules``, such as counters and caches.

    Yields:
        what puts them back at once.
    """
    values = _Values(modules)
    with undone([values], _Values.restore):
        yield values.restore


@contextlib.contextmanager
def restored_state(modules: Iterable[nn.Module]) -> Iterator[Callable[[], None]]:
    """Undo what runs do to ``modules``: to their buffers, and to plain attributes as well.

    A module to which a run adds modules or parameters, or lazy ones of which get their shapes,
    keeps its attributes. What hangs deeper than in a list, dictionary or set is not looked at.

    Yields:
        what puts everything back at once, for the next of several runs to find it.
    """
    modules = list(modules)
    values, attributes = _Values(modules, constants=True), _Attributes(modules)

    def restore() -> None:
        attributes.restore()
        values.restore()

    with undone([restore], lambda item: item()):
        yield restore


# --- tensors ------------------------------------------------------------------------------------


class _Values:
    """Values of the tensors of modules that a run in evaluation mode may change."""

    def __init__(self, modules: Iterable[nn.Module], *, constants: bool = False) -> None:
        self._saved = [
            (states, name, None if tensor is None else TensorValue(tensor))
            for module in modules
            if not isinstance(module, torch.jit.ScriptModule)
            for states, name, tensor in _changeable(module, constants)
        ]

    def restore(self) -> None:
        for states, name, value in self._saved:
            states[name] = None if value is None else value.restored()


def _changeable(
    module: nn.Module, constants: bool
) -> Iterator[tuple[dict[str, Any], str, Tensor | None]]:
    """Yield what a run in evaluation mode may change; lazy buffers get their shape in it."""
    for name, buffer in module._buffers.items():
        if buffer is None or not is_lazy(buffer):
            yield module._buffers, name, buffer
    if _max_norm(module) is not None:  # embeddings that renormalise on look-up
        for name, parameter in module._parameters.items():
            yield module._parameters, name, parameter
    for name, value in plain_tensors(module) if constants else ():
        # What a hook computes before every call is made anew, not written to.
        if not is_replaceable(module, name):
            yield vars(module), name, value


def _max_norm(module: nn.Module) -> object:
    # Without nn.Module's own getattr, which is slow where there is nothing.
    return vars(module).get("max_norm", getattr(type(module), "max_norm", None))


class TensorValue:
    """Value of a tensor, to be put back into it."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._copy = tensor.detach().clone()
        self._is_leaf = tensor.is_leaf
        self._version = _version(tensor)
        # Writes through .data leave the version as it is, so values count too, where they compare.
        plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        self._compares = plain and tensor.layout is torch.strided and not tensor.is_meta

    def restored(self) -> Tensor:
        """Return the tensor, with the value put back where it has changed."""
        tensor = self._tensor
        if self._is_leaf and not tensor.is_leaf and not tensor._is_view():
            tensor.detach_()  # a run with gradients has written to it
        if not self._is_as_before():
            with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                tensor.copy_(self._copy)
            self._version = _version(tensor)
        return tensor

    def _is_as_before(self) -> bool:
        tensor, version = self._tensor, self._version
        written = version is not None and tensor._version != version
        return not written and (not self._compares or torch.equal(tensor, self._copy))


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


# --- attributes ---------------------------------------------------------------------------------


class _Attributes:
    """Attributes of modules that are no tensors: counters, flags, lists of what has been seen."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._saved = [
            (vars(module), dict(vars(module)), Contents(module), _built(vars(module)))
            for module in modules
            if not isinstance(module, torch.jit.ScriptModule) and not _is_lazy(module)
        ]

    def restore(self) -> None:
        for own, attributes, contents, built in self._saved:
            if built != _built(own):
                continue  # it has built itself, and may say so anywhere
            if not same(own, attributes):
                own.update(attributes)
                for name in own.keys() - attributes.keys():
                    del own[name]
            contents.put_back(where_unequal=True)


def _built(own: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(own["_modules"]), tuple(own["_parameters"])


def _is_lazy(module: nn.Module) -> bool:
    states = (*module._parameters.values(), *module._buffers.values())
    return any(state is not None and is_lazy(state) for state in states)
