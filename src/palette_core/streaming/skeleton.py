"""A model without weights, and those of a checkpoint put into it as far as they are needed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from palette_core.errors import CheckpointError
from palette_core.storage.tensor_spans import Span
from palette_core.streaming.source import SourceCheckpoint


@dataclass(frozen=True)
class Skeleton:
    """The model of a checkpoint, without weights.

    Attributes:
        model: parameters, and the buffers that the checkpoint holds, are on the meta device; other
            buffers have their values. It takes calibration batches as its inputs.
        blocks: names of the modules that run one after the other, each on what the one before it
            returns, in that order; None takes the elements of the ``ModuleList`` with most
            parameters.
        names: names of the model's states by those of the checkpoint's tensors; tensors that are
            left out have one name.
    """

    model: nn.Module
    blocks: Sequence[str] | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def block_names(self) -> tuple[str, ...]:
        """Return the names of the blocks.

        Raises:
            CheckpointError: there are none, or one is no module, or stands there twice.
        """
        modules = dict(self.model.named_modules())
        if self.blocks is not None:
            names = tuple(self.blocks)
            wrong = [name for name in names if not name or name not in modules]
            if wrong:
                raise CheckpointError(f"blocks: the model has no module {wrong[0]!r}")
            if not names or len({*names}) < len(names):
                told = "are empty" if not names else f"name one module twice: {list(names)}"
                raise CheckpointError(f"blocks {told}; name each module of the stack once")
            return names
        lists = {n: m for n, m in modules.items() if isinstance(m, nn.ModuleList) and len(m)}
        if not lists:
            raise CheckpointError(
                f"{type(self.model).__name__} has no ModuleList, whose elements would be its "
                "blocks; name them, as Skeleton(model, blocks=[...])"
            )
        chosen = max(lists, key=lambda name: _size(lists[name]))
        return tuple(f"{chosen}.{number}" for number in range(len(lists[chosen])))


def _size(module: nn.Module) -> int:
    return sum(math.prod(parameter.shape) for parameter in module.parameters())


@dataclass(frozen=True)
class _Place:
    """A state of a module: where it stands there."""

    states: dict[str, Any]
    key: str

    def put(self, value: Tensor) -> Tensor:
        """Put another tensor there; returns the one before."""
        before: Tensor = self.states[self.key]
        self.states[self.key] = value
        return before


class States:
    """States of a skeleton, and the tensors of a checkpoint that they are to hold.

    Args:
        skeleton: the model.
        source: the checkpoint.

    Attributes:
        names: names of states by those of the tensors in the checkpoint, as far as the model has
            them.

    Raises:
        CheckpointError: a tensor has another shape than its state.
    """

    def __init__(self, skeleton: Skeleton, source: SourceCheckpoint) -> None:
        self._path = source.path
        self._places: dict[str, _Place] = {}
        tied: dict[int, list[str]] = {}
        for name, place, tensor in _states(skeleton.model):
            self._places[name] = place
            tied.setdefault(id(tensor), []).append(name)
        self.names: dict[str, str] = {}
        self._spans: dict[str, Span] = {}
        for span in source.spans():
            name = skeleton.names.get(span.name, span.name)
            if name in self._places:
                self._check(span, name)
                self.names[span.name], self._spans[name] = name, span
        self._sharing = {name: names for names in tied.values() for name in names}

    def _check(self, span: Span, name: str) -> None:
        place = self._places[name]
        shape = tuple(place.states[place.key].shape)
        if shape != span.shape:
            raise CheckpointError(
                f"{span.path}: {span.name} has shape {span.shape}, and {name} of the model has "
                f"{shape}; build the model that the checkpoint is of"
            )

    def sharing(self, name: str) -> tuple[str, ...]:
        """Return the names of a state and of those tied to it that are not stored themselves."""
        others = (other for other in self._sharing[name] if other not in self._spans)
        return tuple(dict.fromkeys([name, *others]))

    def twins(self, name: str) -> tuple[str, ...]:
        """Return the names of states tied to one that are stored too, with equal values."""
        others = [other for other in self._sharing[name] if other != name and other in self._spans]
        if not others:
            return ()
        mine = self._spans[name].checksum()
        return tuple(other for other in others if self._spans[other].checksum() == mine)

    @contextlib.contextmanager
    def loaded(self, names: Iterable[str]) -> Iterator[None]:
        """Put tensors of the checkpoint, mapped, in the places of states, and take them out again.

        Raises:
            CheckpointError: the checkpoint has none for a state without values.
        """
        before: list[tuple[_Place, Tensor]] = []
        made: dict[tuple[str, torch.dtype], Tensor] = {}
        try:
            for name in names:
                place = self._places[name]
                now: Tensor = place.states[place.key]
                span = self._span(name)
                if span is None:
                    if now.is_meta:
                        raise CheckpointError(
                            f"{self._path} has no tensor for {name} of the model, or several of "
                            "which it is made; palettize the checkpoint without calibration"
                        )
                    continue
                key = span.name, now.dtype
                if key not in made:
                    value = span.mapped().to(now.dtype)
                    is_parameter = isinstance(now, nn.Parameter)
                    made[key] = nn.Parameter(value, requires_grad=False) if is_parameter else value
                before.append((place, place.put(made[key])))
            yield
        finally:
            for place, value in before:
                place.put(value)

    def _span(self, name: str) -> Span | None:
        found = [self._spans.get(other) for other in (name, *self._sharing[name])]
        return next((span for span in found if span is not None), None)

    def inside(self, blocks: Sequence[str]) -> Iterator[str]:
        """Yield the names of the states of some modules."""
        starts = tuple(f"{block}." for block in blocks)
        return (name for name in self._places if name.startswith(starts))

    def outside(self, blocks: Sequence[str]) -> Iterator[str]:
        """Yield the names of the states of all but some modules."""
        within = set(self.inside(blocks))
        return (name for name in self._places if name not in within)

    @contextlib.contextmanager
    def exchanged(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Put tensors in the places of states and of those tied to them for a while."""
        before: list[tuple[_Place, Tensor]] = []
        try:
            for name, value in values.items():
                for other in self.sharing(name):
                    place = self._places[other]
                    fitting = value.to(place.states[place.key].dtype)
                    before.append((place, place.put(nn.Parameter(fitting, requires_grad=False))))
            yield
        finally:
            for place, value in reversed(before):
                place.put(value)


def _states(model: nn.Module) -> Iterator[tuple[str, _Place, Tensor]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for states in (module._parameters, module._buffers):
            for key, tensor in states.items():
                if tensor is not None and key not in module._non_persistent_buffers_set:
                    yield f"{prefix}.{key}" if prefix else key, _Place(states, key), tensor
