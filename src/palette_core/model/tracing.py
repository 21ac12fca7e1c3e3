"""Find which operation consumes which tensor of a model, by running it once.

Operations are watched at the level of ``torch.nn.functional``, so each carries its functional
name (``linear``, ``conv2d``, ``multi_head_attention_forward``); a tensor counts as consumed when
the operation receives it itself, not something computed from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from palette_core._common.modules import (
    all_names,
    is_lazy,
    modules_of,
    named_modules,
    tensors_of,
    type_of,
)
from palette_core._common.pytrees import deep_copy, tensors
from palette_core._common.rng import untouched_global_rng
from palette_core._common.run_hooks import RunHooks
from palette_core.config.names import type_name
from palette_core.errors import OperationError, TracingError
from palette_core.model.graph import ModelGraph, ModuleRecord, Owner, TensorRecord, Use
from palette_core.model.inputs import ExampleInputs, call_arguments
from palette_core.model.isolation import undisturbed
from palette_core.model.states import State, is_parametrization, states_of
from palette_core.model.views import StateStorages
from palette_core.operations import COPIES, installed_operations, op_type_of

# Most arguments that are no tensors.
_SCALARS = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})


def trace(model: nn.Module, example_inputs: ExampleInputs) -> ModelGraph:
    """Run ``model`` once on ``example_inputs`` and record who consumes what.

    The run is in evaluation mode, without gradients and without ``torch.compile``. Afterwards
    training flags, buffers, attributes, inputs and global random states are as before, whether it
    failed or not; only lazy modules keep the shapes that it gave them, and the model what modules
    and parameters it made.

    Raises:
        TypeError: ``example_inputs`` are no model inputs, see `as_inputs`.
        TracingError: the model fails on the inputs, or parameters of it are on the meta device and
            the inputs are not.
        OperationError: a plug-in that knows an operation fails.
    """
    args, kwargs = call_arguments(example_inputs)
    _refuse_offloaded(model, (args, kwargs))
    with contextlib.suppress(TypeError):  # of what cannot be copied: it is run once
        args, kwargs = deep_copy((args, kwargs))
    with undisturbed(model), untouched_global_rng(), torch.no_grad():
        recorder = _Recorder(model)
        with recorder:
            try:
                model(*args, **kwargs)
            except OperationError:
                raise
            except (Exception, SystemExit) as error:
                raise TracingError(
                    f"{type(model).__name__} failed on example_inputs: {type(error).__name__}: "
                    f"{error}"
                ) from error
        return recorder.graph()


def _refuse_offloaded(model: nn.Module, inputs: Any) -> None:
    """Refuse a model whose tensors come from elsewhere for the time of a call, if at all.

    Hooks of libraries that offload weights exchange them inside of ``forward``: what hangs in the
    model would seem not to be used.

    Raises:
        TracingError: naming the first such tensor.
    """
    registries = [module._parameters.values() for module in modules_of(model)]
    if not any(tensor is not None and tensor.is_meta for each in registries for tensor in each):
        return
    named = list(model.named_parameters())
    lacking = [name for name, tensor in named if tensor.is_meta]
    others = list(tensors(inputs)) or [tensor for _, tensor in named]
    if not all(tensor.is_meta for tensor in others):
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise TracingError(
            f"{lacking[0]}{more} are on the meta device and hold no values: they are offloaded, "
            "and fetched by hooks for the time of a call, or not loaded; load the model whole, "
            "without offloading (device_map=None, or every module on a device)"
        )


@dataclass
class _Frame:
    module: nn.Module
    name: str
    counts: dict[str, int] = field(default_factory=dict)


class _Recorder(TorchFunctionMode):
    """Watches operations while hooks keep track of the module that runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        named = named_modules(model)
        self._names = {id(module): name for name, module in named}
        # TorchScript runs outside Python, where nothing can be watched.
        self._modules = [m for _, m in named if not isinstance(m, torch.jit.ScriptModule)]
        self._frames: list[_Frame] = []
        self._hooks = RunHooks(self._enter_module, self._leave_module)
        self._op_types: dict[Any, str | None] = {}  # by function
        self._uses: dict[int, dict[Use, None]] = {}
        self._views: dict[int, tuple[int, str]] = {}  # axis and operation
        self._ran: set[str] = set()
        # Holding the states themselves keeps their ids from being given to other tensors.
        self._states: dict[int, Tensor] = {}
        self._storages = StateStorages(self._states)
        self._buffers = [
            (name, module, state, tensor, _version(tensor))
            for name, module in named
            if not isinstance(module, torch.jit.ScriptModule)  # whose buffers are new at each look
            for state, tensor in module._buffers.items()
            if tensor is not None and not is_lazy(tensor)
        ]

    def __enter__(self) -> _Recorder:
        for module in self._modules:
            self._learn_states(module)
        self._hooks.put_into(self._modules)
        try:
            super().__enter__()  # type: ignore[no-untyped-call]
        except BaseException:
            self._hooks.remove()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            super().__exit__(*exc)  # type: ignore[no-untyped-call]
        finally:
            self._hooks.remove()

    def _enter_module(self, module: nn.Module) -> None:
        name = self._names[id(module)]
        self._frames.append(_Frame(module, name))
        self._ran.add(name)
        self._learn_states(module)  # again: hooks and lazy modules may just have made them

    def _learn_states(self, module: nn.Module) -> None:
        if not isinstance(module, parametrize.ParametrizationList):
            self._states.update((id(tensor), tensor) for tensor in tensors_of(module))

    def _leave_module(self, module: nn.Module) -> None:
        if self._frames and self._frames[-1].module is module:  # its pre-hooks may have failed
            self._frames.pop()
            self._storages.forget_copies()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op_type = self._op_type_of(func)
        if self._frames and op_type is not None:
            try:
                self._record(op_type, func, args, kwargs)
            except OperationError:
                func(*args, **kwargs)  # where the call is wrong, its own complaint says it better
                raise
        # Inside a composite such as multi_head_attention_forward this mode is off, so its inner
        # linear calls are not seen: the composite is the operation.
        out = func(*args, **kwargs)
        if self._frames and op_type in COPIES and isinstance(out, Tensor) and args:
            source = args[0]
            if isinstance(source, Tensor) and self._storages.state_of(source) is not None:
                self._storages.copied(source, out)
        return out

    def _op_type_of(self, func: Any) -> str | None:
        try:
            return self._op_types[func]
        except KeyError:
            self._op_types[func] = found = op_type_of(func)
            return found
        except TypeError:  # it has no hash
            return op_type_of(func)

    def _record(
        self, op_type: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        operations = installed_operations()
        frame = self._frames[-1]
        count = frame.counts.get(op_type, 0)
        frame.counts[op_type] = count + 1
        local = op_type if count == 0 else f"{op_type}_{count}"
        name = f"{frame.name}.{local}" if frame.name else local
        for tensor in _tensors((*args, *kwargs.values())):
            if id(tensor) in self._states:
                axis = operations.channel_axis_in(op_type, func, args, kwargs, tensor)
                self._uses.setdefault(id(tensor), {})[Use(frame.name, op_type, name, axis)] = None
            elif operations.understands(op_type):
                self._record_view(op_type, func, args, kwargs, tensor)

    def _record_view(
        self,
        op_type: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensor: Tensor,
    ) -> None:
        """Learn a state's output-channel axis from an operation that receives a view of it."""
        if not self._storages.knows(tensor):
            return
        axis = installed_operations().channel_axis_in(op_type, func, args, kwargs, tensor)
        found = None if axis is None else self._storages.axis_of(tensor, axis)
        if found is not None:
            state, axis = found
            self._views.setdefault(id(state), (axis, op_type))

    def graph(self) -> ModelGraph:
        """Return the records; call after the run, while values that are computed are kept."""
        names: dict[int, list[str]] = {}
        modules: dict[int, nn.Module] = {}
        for name, module in all_names(self._model):
            names.setdefault(id(module), []).append(name)
            modules[id(module)] = module
        records = tuple(
            ModuleRecord(tuple(names[key]), type_name(type_of(module)))
            for key, module in modules.items()
            if not is_parametrization(names[key][0])
        )
        return ModelGraph(records, tuple(self._tensor_records()), tuple(self._written()))

    def _written(self) -> Iterator[str]:
        """Yield the names of buffers that the run has written to, or put others in their place."""
        for name, module, state, tensor, version in self._buffers:
            if module._buffers.get(state) is not tensor or _version(tensor) != version:
                yield Owner(name, state).name

    def _tensor_records(self) -> Iterator[TensorRecord]:
        found: dict[int, list[tuple[str, State]]] = {}
        for name, module in named_modules(self._model):
            if not is_parametrization(name):
                for state in states_of(module):
                    found.setdefault(id(state.tensor), []).append((name, state))
        for key, places in found.items():
            _, first = places[0]
            uses = tuple(self._uses.get(key, {}))
            yield TensorRecord(
                tuple([Owner(name, state.name) for name, state in places]),
                tuple(first.tensor.shape),
                first.tensor.dtype,
                first.kind,
                uses,
                bool(uses) or any(name in self._ran for name, _ in places),
                next(filter(None, [state.obstacle for _, state in places]), None),
                *self._views.get(key, (None, None)),
            )


def _version(tensor: Tensor) -> int:
    return 0 if type(tensor) is not Tensor or tensor.is_inference() else tensor._version


def _tensors(items: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for item in items:
        if type(item) in _SCALARS:
            continue
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (tuple, list)):
            found += _tensors(item)
        elif isinstance(item, Mapping):
            found += _tensors(item.values())
    return found
