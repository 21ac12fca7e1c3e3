"""Run a model so that it is afterwards as it was before."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palette_core._common.modules import is_lazy, modules_of, plain_tensors
from palette_core._common.undoing import undone
from palette_core.model.contents import Contents, Glance, refill, same
from palette_core.model.deeper import Deeper
from palette_core.model.hooked_weights import computed_once, is_replaceable

Change = Callable[[], object]
"""Makes one thing of a model as a run had made it."""


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[Baseline]:
    """Run a model in evaluation mode, as it is written, and leave it as it was.

    Weights that are computed are computed once. For what comes back see `restored_state`.

    Yields:
        what puts everything back at once, for the next of several runs to find it.
    """
    with (
        evaluation_mode(model),
        computed_once(model),
        restored_state(modules_of(model)) as restore,
        parametrize.cached(),
        _uncompiled(),
    ):
        yield restore


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
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


class Baseline:
    """Buffers and plain attributes of modules as they were; calling it puts them back."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = modules = list(modules)
        self._values, self._attributes = _Values(modules, constants=True), _Attributes(modules)
        self._deeper: Deeper | None = None

    def __call__(self) -> None:
        """Put everything back."""
        self._attributes.restore()
        self._values.restore()

    def taken(self) -> list[Change]:
        """Put everything back, and return what was different, for a run that will go on.

        Writes through ``.data`` are not found here.
        """
        return [*self._attributes.taken(), *self._values.taken()]

    def is_written_deeper(self) -> bool:
        """Return whether runs change what `taken` does not find, since the first time of asking.

        That is in objects that modules hold, or through ``.data``.
        """
        if self._deeper is None:
            self._deeper = Deeper(self._modules)
        return self._deeper.is_written() or self._values.are_written_unseen


@contextlib.contextmanager
def restored_state(modules: Iterable[nn.Module]) -> Iterator[Baseline]:
    """Undo what runs do to ``modules``: to their buffers, and to plain attributes as well.

    A module to which a run adds modules or parameters, or lazy ones of which get their shapes,
    keeps its attributes. What hangs deeper than in a list, dictionary or set is not looked at.

    Yields:
        what puts everything back at once, for the next of several runs to find it.
    """
    baseline = Baseline(modules)
    with undone([baseline], lambda item: item()):
        yield baseline


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

    @property
    def are_written_unseen(self) -> bool:
        """True once values were put back whose versions did not tell that they had changed."""
        return any(value is not None and value.is_written_unseen for _, _, value in self._saved)

    def restore(self) -> None:
        for states, name, value in self._saved:
            states[name] = None if value is None else value.restored()

    def taken(self) -> Iterator[Change]:
        """Put back what has been exchanged or written to, and yield what makes it so again."""
        for states, name, value in self._saved:
            now = states.get(name)
            if value is None:
                if now is not None:
                    states[name] = None
                    yield functools.partial(states.__setitem__, name, now)
            elif now is not value.tensor:
                states[name] = value.restored()
                yield functools.partial(states.__setitem__, name, now)
            elif value.is_written():
                written = value.tensor.detach().clone()
                value.restored()
                yield functools.partial(value.write, written)


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
        self.tensor = tensor
        self._copy = tensor.detach().clone()
        self._is_leaf = tensor.is_leaf
        self._version = _version(tensor)
        self.is_written_unseen = False
        # Writes through .data leave the version as it is, so values count too, where they compare.
        plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        self._compares = plain and tensor.layout is torch.strided and not tensor.is_meta

    def is_written(self) -> bool:
        """Return whether its version says that it was written to."""
        return self._version is not None and self.tensor._version != self._version

    def write(self, value: Tensor) -> None:
        """Give the tensor another value."""
        with torch.inference_mode() if self.tensor.is_inference() else torch.no_grad():
            self.tensor.copy_(value)

    def restored(self) -> Tensor:
        """Return the tensor, with the value put back where it has changed."""
        tensor = self.tensor
        if self._is_leaf and not tensor.is_leaf and not tensor._is_view():
            tensor.detach_()  # a run with gradients has written to it
        if not self._is_as_before():
            self.is_written_unseen = self.is_written_unseen or not self.is_written()
            self.write(self._copy)
            self._version = _version(tensor)
        return tensor

    def _is_as_before(self) -> bool:
        tensor, version = self.tensor, self._version
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
        pairs = ((own, attributes) for own, attributes, _, _ in self._saved)
        self._glance = Glance(pairs, (contents for _, _, contents, _ in self._saved))

    def restore(self) -> None:
        for own, attributes, contents, built in self._saved:
            if built != _built(own):
                continue  # it has built itself, and may say so anywhere
            if not same(own, attributes):
                own.update(attributes)
                for name in own.keys() - attributes.keys():
                    del own[name]
            contents.put_back(where_unequal=True)

    def taken(self) -> list[Change]:
        """Put everything back, and return what makes it as it is now."""
        found: list[Change] = []
        if self._glance.is_same():
            return found
        for own, attributes, contents, _ in self._saved:
            found += contents.changes()
            if not same(own, attributes):
                found.append(functools.partial(refill, own, own.copy()))
        if found:
            self.restore()
        return found


def _built(own: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(own["_modules"]), tuple(own["_parameters"])


def _is_lazy(module: nn.Module) -> bool:
    states = (*module._parameters.values(), *module._buffers.values())
    return any(state is not None and is_lazy(state) for state in states)
