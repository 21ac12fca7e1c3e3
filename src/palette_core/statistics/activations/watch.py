"""Operations that consume weights of a model, shown as they run, with other weights if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from palette_core.errors import OperationError
from palette_core.model.views import StateStorages
from palette_core.operations import installed_operations, op_type_of
from palette_core.plugins import Consumption
from palette_core.statistics.activations.through_views import through_view


@dataclass(frozen=True)
class Seen:
    """One weight consumed in a run.

    Attributes:
        name: of its plan.
        call: how many calls had consumed it before in this run.
        what: input and view, or None where the operation is not one whose inputs are known.
        op_type: the operation.
    """

    name: str
    call: int
    what: Consumption | None
    op_type: str


OnSeen = Callable[[Seen], None]
OnOutput = Callable[[Seen, Any], Any]
Compute = Callable[[Any, Any, tuple[Any, ...], Mapping[str, Any]], Any]
"""Computes what a function makes of arguments; gets types that override it before these."""


def compute_here(func: Any, types: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call a function."""
    del types
    return func(*args, **kwargs)


class NotTaken(BaseException):
    """Failure of what looks at a weight: that is not the model's doing."""

    def __init__(self, seen: Seen, error: Exception) -> None:
        super().__init__()
        self.seen, self.error = seen, error


def _is_transformed(x: Tensor) -> bool:
    """Return whether this stands for a tensor in a transform of ``torch.func``, such as vmap."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


class Watch(TorchFunctionMode):
    """Shows operations that consume watched weights, and exchanges those weights."""

    def __init__(
        self,
        own: Mapping[int, tuple[str, Tensor]],
        weights: Mapping[str, Tensor],
        on_seen: OnSeen | None,
        on_output: OnOutput | None,
        compute: Compute = compute_here,
    ) -> None:
        super().__init__()
        self._own = own
        self._weights = weights
        self._on_seen = on_seen
        self._on_output = on_output
        self._compute = compute
        self._calls: dict[str, int] = {}
        self._values: dict[int, Tensor] = {}
        self._by_value: dict[int, str] = {}
        self._storages = StateStorages(self._values)
        self._learn()

    def _learn(self) -> None:
        """Learn what stands for weights: while a run waits, there may come more."""
        for name, tensor in self._own.values():
            value = self._weights.get(name, tensor)
            self._values[id(value)] = value
            self._by_value[id(value)] = name
        self._n_known = len(self._weights)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op_type = op_type_of(func)
        if op_type is None:
            return self._compute(func, types, args, kwargs)
        names = list(dict.fromkeys(self._names((args, tuple(kwargs.values())))))
        if not names:
            return self._compute(func, types, args, kwargs)
        seen: list[Seen] = []
        if self._on_seen is not None or self._on_output is not None:
            calls = [self._calls.get(name, 0) for name in names]
            self._calls |= {name: call + 1 for name, call in zip(names, calls, strict=True)}
            for place in range(len(names)):
                # Composites use several weights, and later ones see what earlier ones have become.
                if not seen or self._n_known != len(self._weights):
                    seen = self._seen(op_type, func, args, kwargs, names, calls)
                if self._on_seen is not None:
                    self._show(seen[place], func, args, kwargs)
        out = self._compute(func, types, self._exchange(args), self._exchange(kwargs))
        if self._on_output is not None:
            for item in seen:
                out = self._on_output(item, out)
        return out

    def _show(self, item: Seen, func: Any, args: Any, kwargs: Any) -> None:
        assert self._on_seen is not None
        try:
            self._on_seen(item)
        except Exception as error:
            # Where the inputs do not fit, the operation's own complaint says it better.
            func(*self._exchange(args), **self._exchange(kwargs))
            raise NotTaken(item, error) from error

    def _seen(
        self, op_type: str, func: Any, args: Any, kwargs: Any, names: list[str], calls: list[int]
    ) -> list[Seen]:
        if self._n_known != len(self._weights):
            self._learn()
        try:
            found = self._describe(op_type, func, args, kwargs)
        except OperationError:
            # Where the call is wrong, the operation's own complaint says it better.
            func(*self._exchange(args), **self._exchange(kwargs))
            raise
        return [
            Seen(name, call, found.get(name), op_type)
            for name, call in zip(names, calls, strict=True)
        ]

    def _describe(self, op_type: str, func: Any, args: Any, kwargs: Any) -> dict[str, Consumption]:
        # The composites among them see the exchanged weights.
        exchanged = self._exchange(args), self._exchange(kwargs)
        found: dict[str, Consumption] = {}
        for what in installed_operations().consumptions(op_type, func, *exchanged):
            if any(map(_is_transformed, what.raw)):
                continue
            name = self._by_value.get(id(what.weight))
            if name is not None:
                found.setdefault(name, what)
                continue
            name, weight = self._behind(what.weight)
            through = None if weight is None else through_view(what, weight)
            if through is not None:
                found.setdefault(name, through)
        return found

    def _behind(self, tensor: Tensor) -> tuple[str, Tensor | None]:
        """Return name and value of the weight that a tensor is a view of, or None for the value."""
        weight = self._storages.state_of(tensor)
        return ("", None) if weight is None else (self._by_value[id(weight)], weight)

    def _names(self, value: Any) -> Iterator[str]:
        if isinstance(value, Tensor):
            entry = self._own.get(id(value))
            name = entry[0] if entry is not None else self._behind(value)[0]
            if name:
                yield name
        elif isinstance(value, (tuple, list)):
            for item in value:
                yield from self._names(item)

    def _exchange(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            entry = self._own.get(id(value))
            return value if entry is None else self._weights.get(entry[0], value)
        if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
            return type(value)(self._exchange(item) for item in value)
        if type(value) is dict:
            return {key: self._exchange(item) for key, item in value.items()}
        return value
