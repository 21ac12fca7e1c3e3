"""A dense model beside a packed checkpoint: whether they fit, and the model as it was if not."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palette_core._common.wrapped import inner_tensors
from palette_core.errors import did_you_mean
from palette_core.model.hooked_weights import made_of
from palette_core.model.parametrization import ModuleSnapshot, parametrizations
from palette_core.storage.checkpoint_reading import Checkpoint
from palette_core.tensors.dtypes import dtype_name

_EXTRA = "_extra_state"  # torch's name for what get_extra_state() returns


@final
@dataclass(frozen=True)
class OwnStates:
    """States of a dense model, by the plain names that a file has for them.

    Attributes:
        model: the model.
        tensors: what its state dictionary holds, but weights themselves in the place of what they
            are computed from, and what tensors of other classes store in theirs.
        values: what else its state dictionary holds.
    """

    model: nn.Module
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module, palettized: Sequence[str]) -> OwnStates:
        """Look at a model.

        Args:
            model: a dense one.
            palettized: names of the weights that a file has palettes for. Those that are computed
                (parametrized in some way, or by a hook) or that a state dictionary leaves out
                are among the tensors too.
        """
        states = model.state_dict(keep_vars=True)
        own: dict[str, Tensor] = {}
        for name, value in states.items():
            own |= inner_tensors(value, name) if isinstance(value, Tensor) else {}
        for name in palettized:
            prefix, dot, state = name.rpartition(".")
            try:
                module = model.get_submodule(prefix)
                value = getattr(module, state)
            except AttributeError:
                continue
            if isinstance(value, Tensor) and name not in own:
                parts = {f"{prefix}{dot}{part}" for part in made_of(module, state)}
                chain = chain_prefix(name)
                own = {k: t for k, t in own.items() if k not in parts and not k.startswith(chain)}
                own[name] = value
        return cls(model, own, {n: v for n, v in states.items() if not isinstance(v, Tensor)})

    def mismatches(self, checkpoint: Checkpoint, names: Mapping[str, Sequence[str]]) -> list[str]:
        """Return all that keeps a file from being loaded.

        Args:
            checkpoint: content of the file.
            names: of palettized weights: all names of each by the first one.
        """
        wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name, tensor in checkpoint.palettized.items():
            wanted |= dict.fromkeys(names[name], (tensor.shape, tensor.dtype))
        for name, dense in checkpoint.dense.items():
            wanted[name] = (tuple(dense.shape), dense.dtype)
        for alias, first in checkpoint.aliases.items():
            if first in wanted:
                wanted[alias] = wanted[first]
        problems = [
            problem
            for name, (shape, dtype) in wanted.items()
            if (problem := self._mismatch(name, shape, dtype)) is not None
        ]
        values = checkpoint.values
        problems += [f"the model has no {name}" for name in values if name not in self.values]
        known = {*wanted, *checkpoint.written}
        lacking = [name for name in self.tensors if name not in known]
        lacking += [name for name in self.values if name not in values]
        problems += [f"the file lacks {name}" for name in lacking]
        problems += self._torn(checkpoint, wanted)
        problems += self._unfilled(wanted, [name for group in names.values() for name in group])
        return problems

    def fill_parts(self, values: Mapping[str, Any]) -> None:
        """Copy what tensors of other classes store, which no state dictionary has by itself."""
        held = self.model.state_dict(keep_vars=True)
        for name in (self.tensors.keys() & values.keys()) - held.keys():
            self.tensors[name].copy_(values[name])

    def written(self) -> contextlib.AbstractContextManager[None]:
        """Let the states be written to, those among them that inference mode has made."""
        made = any(tensor.is_inference() for tensor in self.tensors.values())
        return torch.inference_mode() if made else torch.no_grad()

    def _mismatch(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
        own = self.tensors.get(name)
        if own is None:
            return f"the model has no {name}{did_you_mean(name, self.tensors)}"
        if torch.nn.parameter.is_lazy(own):
            return f"{name} has no shape yet; run the model once before loading"
        if tuple(own.shape) != shape:
            return f"{name} has shape {tuple(own.shape)} in the model, {shape} in the file"
        if own.dtype is not dtype:
            return (
                f"{name} is {dtype_name(own.dtype)} in the model, {dtype_name(dtype)} in "
                "the file; cast the model before loading, or the loaded one afterwards"
            )
        return None

    def _torn(self, checkpoint: Checkpoint, wanted: Iterable[str]) -> Iterator[str]:
        """Yield tensors that are tied in the model and not in the file, where values differ."""
        first: dict[int, str] = {}
        for name in wanted:
            own = self.tensors.get(name)
            if own is None:
                continue
            other = first.setdefault(id(own), name)
            a, b = (checkpoint.aliases.get(n, n) for n in (other, name))
            dense = checkpoint.dense
            if a != b and not (a in dense and b in dense and torch.equal(dense[a], dense[b])):
                yield f"{other} and {name} are one tensor in the model, and two in the file"

    def _unfilled(self, wanted: Iterable[str], palettized: Iterable[str]) -> Iterator[str]:
        """Yield what would stay on the meta device."""
        left = {
            id(tensor): f"{prefix}.{state}" if prefix else state
            for prefix, module in self.model.named_modules()
            for state, tensor in (*_registered(module), *_constants(module))
            if tensor.is_meta
        }
        filled = [self.tensors[name] for name in wanted if name in self.tensors]
        filled += [tensor for name in palettized if left for tensor in self._behind(name)]
        for tensor in filled:
            left.pop(id(tensor), None)
        for name in left.values():
            yield (
                f"{name} is on the meta device and not in the file, as it is in no state "
                "dictionary; make it on a device before loading, for instance by building the "
                "model with its buffers outside of torch.device('meta')"
            )

    def _behind(self, name: str) -> Iterator[Tensor]:
        """Yield a weight, and what it is computed from."""
        prefix, _, state = name.rpartition(".")
        try:
            module = self.model.get_submodule(prefix)
        except AttributeError:
            return
        for part in (state, *made_of(module, state)):
            value = getattr(module, part, None)
            if isinstance(value, Tensor):
                yield value
        if parametrize.is_parametrized(module, state):
            chain = parametrizations(module)[state]
            yield from (*chain.parameters(), *chain.buffers())

    def _module(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    @contextlib.contextmanager
    def put_back(self, names: Iterable[str], modules: Iterable[nn.Module]) -> Iterator[None]:
        """Put states and modules back where the block fails or is interrupted.

        Both in one context: of two, an interrupt on the way out may reach the outer one alone.

        Args:
            names: of the states whose values come back.
            modules: what comes back as `ModuleSnapshot` does it.
        """
        places = [
            (module, state, tensor)
            for module in self.model.modules()
            for state, tensor in _registered(module)
            if tensor.is_meta
        ]
        values = {n: self.tensors[n].detach().clone() for n in names if n in self.tensors}
        owners = [n.rpartition(".")[0] for n in names if n.rpartition(".")[2] == _EXTRA]
        extra = [(m, copy.deepcopy(m.get_extra_state())) for m in map(self._module, owners)]
        snapshot = ModuleSnapshot(modules)
        try:
            yield
        except BaseException:
            snapshot.restore()
            for module, state, tensor in places:
                if getattr(module, state) is not tensor:
                    setattr(module, state, tensor)
            with self.written():
                for name, value in values.items():
                    self.tensors[name].copy_(value)
            for module, state in extra:
                module.set_extra_state(state)
            raise


def with_memory(model: nn.Module, names: Iterable[str]) -> None:
    """Give states on the meta device memory on the CPU, those that are tied the same."""
    wanted, made = set(names), dict[int, Tensor]()
    for prefix, module in model.named_modules(remove_duplicate=False):
        for state, tensor in _registered(module):
            if tensor.is_meta and (f"{prefix}.{state}" if prefix else state) in wanted:
                if id(tensor) not in made:
                    fresh = torch.empty_like(tensor, device="cpu")
                    if isinstance(tensor, nn.Parameter):
                        fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = fresh
                setattr(module, state, made[id(tensor)])


def chain_prefix(name: str) -> str:
    """Return how the names of everything behind a parametrized tensor begin."""
    module, _, state = name.rpartition(".")
    return f"{module}.parametrizations.{state}." if module else f"parametrizations.{state}."


def _registered(module: nn.Module) -> list[tuple[str, Tensor]]:
    states = [*module._parameters.items(), *module._buffers.items()]
    return [(name, tensor) for name, tensor in states if tensor is not None]


def _constants(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that hang in a module as plain attributes, and no hook computes."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and not {f"{name}_orig", f"{name}_g"} & {*module._parameters}:
            yield name, value
