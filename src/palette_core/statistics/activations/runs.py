"""Runs of a model on calibration batches, watched, and with other weights in place of its own.

Weights are exchanged in the arguments of the operations that consume them, so the model itself
is never written to. Blocks that have been run before can answer from memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from palette_core._common.pytrees import mapped
from palette_core._common.rng import untouched_global_rng
from palette_core.errors import CalibrationError, OperationError
from palette_core.model import (
    ExampleInputs,
    check_example_inputs,
    evaluation_mode,
    restored_values,
    uncompiled,
)
from palette_core.operations import installed_operations, op_type_of
from palette_core.planning import TensorPlan
from palette_core.plugins import Consumption


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


class Stop(BaseException):
    """Ends a run that has shown what it was for."""


class _NotTaken(BaseException):
    """What looks at a weight has failed: that is not the model's doing."""

    def __init__(self, seen: Seen, error: Exception) -> None:
        super().__init__()
        self.seen, self.error = seen, error


def as_batch(item: Any, what: str = "a calibration batch") -> ExampleInputs:
    """Return one calibration batch as model inputs; a lone tensor is the only input.

    Args:
        item: the batch.
        what: what to call it in an error.

    Raises:
        TypeError: it is neither a tensor, a tuple of positional nor a mapping of keyword inputs.
    """
    if isinstance(item, Tensor):
        return (item,)
    if not isinstance(item, (Mapping, tuple, list)):
        raise TypeError(
            f"{what} must be a tuple of positional inputs, as in model(*batch), a dictionary of "
            f"keyword inputs, or one tensor, got {type(item).__name__}"
        )
    return item


@dataclass
class Runner:
    """Runs a model on batches.

    ``with runner:`` around several runs saves what each of them has to do otherwise: put the
    model into evaluation mode, and leave it as it was before.

    Attributes:
        model: the model; its weights are read only.
        plans: the weights to watch.
        batches: model inputs.
        blocks: modules that may answer from memory, by name.
        n_calibration: how many of the batches are for calibration; those after them are held
            out. None is all of them.
    """

    model: nn.Module
    plans: Sequence[TensorPlan]
    batches: Sequence[ExampleInputs]
    blocks: Mapping[str, nn.Module] = field(default_factory=dict)
    n_calibration: int | None = None

    def __post_init__(self) -> None:
        self._depth = 0
        self._stay = contextlib.ExitStack()
        self._own: dict[int, tuple[str, Tensor]] = {}

    def __enter__(self) -> Self:
        if self._depth == 0:
            with contextlib.ExitStack() as stack:
                for context in (
                    evaluation_mode(self.model),
                    untouched_global_rng(),
                    restored_values(self.model.modules()),
                    parametrize.cached(),
                    uncompiled(),
                ):
                    stack.enter_context(context)
                self._own = self._watched()
                self._stay = stack.pop_all()
        self._depth += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._own = {}
            self._stay.close()

    def label(self, batch: int) -> str:
        """Return what to call a batch in a message."""
        if self.n_calibration is None or batch < self.n_calibration:
            return f"calibration batch {batch}"
        return f"held-out batch {batch - self.n_calibration}"

    def run(
        self,
        batch: int,
        on_seen: OnSeen | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
        answers: Mapping[str, Any] | None = None,
        keep: Callable[[str, Any], None] | None = None,
        on_output: OnOutput | None = None,
        gradients: bool = False,
    ) -> Any:
        """Run one batch and return the output, or None where a callback raised `Stop`.

        Args:
            batch: number of the batch.
            on_seen: called before every operation that consumes a watched weight.
            weights: what to use in place of weights, by name of their plans.
            answers: outputs of blocks that are not to be run.
            keep: called with the output of every block that was run.
            on_output: may exchange the output of an operation that consumes a watched weight.
            gradients: record a graph.

        Raises:
            CalibrationError: the model failed, or what looks at its weights.
            OperationError: a plug-in that knows an operation failed.
        """
        args, kwargs = check_example_inputs(self.batches[batch])
        recording = torch.enable_grad() if gradients else torch.no_grad()
        with self, recording, self._blocks(answers or {}, keep):
            watch = _Watch(self._own, weights or {}, on_seen, on_output)
            try:
                with watch:
                    return self.model(*args, **kwargs)
            except Stop:
                return None
            except OperationError:
                raise
            except _NotTaken as failed:
                raise CalibrationError(
                    f"what {failed.seen.op_type!r} multiplies {failed.seen.name} with could not "
                    f"be looked at on {self.label(batch)}: {type(failed.error).__name__}: "
                    f"{failed.error}"
                ) from failed.error
            except (Exception, SystemExit) as error:
                raise CalibrationError(
                    f"{type(self.model).__name__} failed on {self.label(batch)}: "
                    f"{type(error).__name__}: {error}"
                ) from error

    def _watched(self) -> dict[int, tuple[str, Tensor]]:
        """Return the watched weights as operations receive them."""
        found = {}
        for plan in self.plans:
            for owner in plan.owners:
                tensor = getattr(self.model.get_submodule(owner.module), owner.state)
                found[id(tensor)] = (plan.name, tensor)
        return found

    @contextlib.contextmanager
    def _blocks(
        self, answers: Mapping[str, Any], keep: Callable[[str, Any], None] | None
    ) -> Iterator[None]:
        """Let blocks answer from memory, or have their outputs kept."""
        changed: list[tuple[nn.Module, Any]] = []
        try:
            for name, module in self.blocks.items():
                if name not in answers and keep is None:
                    continue
                changed.append((module, vars(module).get("forward", _ABSENT)))
                made = _answering(answers[name]) if name in answers else None
                object.__setattr__(module, "forward", made or _keeping(name, module.forward, keep))
            yield
        finally:
            for module, before in reversed(changed):
                if before is _ABSENT:
                    object.__delattr__(module, "forward")
                else:
                    object.__setattr__(module, "forward", before)


_ABSENT = object()


def _answering(answer: Any) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        return copied(answer)

    return forward


def _keeping(name: str, forward: Any, keep: Callable[[str, Any], None] | None) -> Any:
    def kept(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        if keep is not None:
            keep(name, out)
        return out

    return kept


def copied(value: Any) -> Any:
    """Copy all tensors of a nested value: what follows may write to them."""
    return mapped(lambda x: x.detach().clone(), value)


class _Watch(TorchFunctionMode):
    """Shows operations that consume watched weights, and exchanges those weights."""

    def __init__(
        self,
        own: Mapping[int, tuple[str, Tensor]],
        weights: Mapping[str, Tensor],
        on_seen: OnSeen | None,
        on_output: OnOutput | None,
    ) -> None:
        super().__init__()
        self._own = own
        self._weights = weights
        self._on_seen = on_seen
        self._on_output = on_output
        self._calls: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        op_type = op_type_of(func)
        if op_type is None:
            return func(*args, **kwargs)
        names = list(dict.fromkeys(self._names((args, tuple(kwargs.values())))))
        if not names:
            return func(*args, **kwargs)
        seen = []
        if self._on_seen is not None or self._on_output is not None:
            try:
                seen = self._describe(op_type, func, args, kwargs, names)
            except OperationError:
                # Where the call is wrong, the operation's own complaint says it better.
                func(*self._exchange(args), **self._exchange(kwargs))
                raise
        if self._on_seen is not None:
            for item in seen:
                try:
                    self._on_seen(item)
                except Exception as error:
                    # Where the inputs do not fit, the operation's own complaint says it better.
                    func(*self._exchange(args), **self._exchange(kwargs))
                    raise _NotTaken(item, error) from error
        out = func(*self._exchange(args), **self._exchange(kwargs))
        if self._on_output is not None:
            for item in seen:
                out = self._on_output(item, out)
        return out

    def _describe(
        self, op_type: str, func: Any, args: Any, kwargs: Any, names: list[str]
    ) -> list[Seen]:
        # The composites among them see the exchanged weights.
        exchanged = self._exchange(args), self._exchange(kwargs)
        own = {id(self._weights.get(name, t)): name for name, t in self._own.values()}
        found: dict[str, Consumption] = {}
        for what in installed_operations().consumptions(op_type, func, *exchanged):
            name = own.get(id(what.weight))
            if name is not None:
                found.setdefault(name, what)
        seen = []
        for name in names:
            call = self._calls.get(name, 0)
            self._calls[name] = call + 1
            seen.append(Seen(name, call, found.get(name), op_type))
        return seen

    def _names(self, value: Any) -> Iterator[str]:
        if isinstance(value, Tensor):
            entry = self._own.get(id(value))
            if entry is not None:
                yield entry[0]
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
