"""Runs of a model on calibration batches, watched, and with other weights in place of its own.

Weights are exchanged in the arguments of the operations that consume them, so the model itself
is never written to. Stages that have been run before can answer from memory. Every run starts
from the same inputs, buffers and random states, whatever those before it have done to them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from palette_core._common.pytrees import deep_copy
from palette_core._common.rng import untouched_global_rng
from palette_core.errors import CalibrationError, OperationError
from palette_core.model import (
    Baseline,
    Change,
    ExampleInputs,
    call_arguments,
    undisturbed,
)
from palette_core.planning import TensorPlan
from palette_core.statistics.activations.watch import (
    Compute,
    NotTaken,
    OnOutput,
    OnSeen,
    Watch,
    compute_here,
)


class Stop(BaseException):
    """Ends a run that has shown what it was for."""


@dataclass
class Runner:
    """Runs a model on batches.

    ``with runner:`` around several runs saves what each of them has to do otherwise: put the
    model into evaluation mode, and leave it as it was before.

    Attributes:
        model: the model; its weights are read only.
        plans: the weights to watch.
        batches: model inputs.
        stages: modules that may answer from memory, by name.
        n_calibration: how many of the batches are for calibration; those after them are held
            out. None is all of them.
    """

    model: nn.Module
    plans: Sequence[TensorPlan]
    batches: Sequence[ExampleInputs]
    stages: Mapping[str, nn.Module] = field(default_factory=dict)
    n_calibration: int | None = None

    def __post_init__(self) -> None:
        self._depth = 0
        self._stay = contextlib.ExitStack()
        self._own: dict[int, tuple[str, Tensor]] = {}
        self._restore: Baseline | None = None

    def __enter__(self) -> Self:
        if self._depth == 0:
            with contextlib.ExitStack() as stack:
                self._restore = stack.enter_context(undisturbed(self.model))
                self._own = self._watched()
                self._stay = stack.pop_all()
        self._depth += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._own, self._restore = {}, None
            self._stay.close()

    def label(self, batch: int) -> str:
        """Return what to call a batch in a message."""
        if self.n_calibration is None or batch < self.n_calibration:
            return f"calibration batch {batch}"
        return f"held-out batch {batch - self.n_calibration}"

    def copy_of(self, batch: int) -> Any:
        """Return a copy of a batch, for whoever gets it to do with as it likes.

        Raises:
            CalibrationError: something in it cannot be copied.
        """
        return self._copied(batch, self.batches[batch])

    def _copied(self, batch: int, value: Any) -> Any:
        try:
            return deep_copy(value)
        except TypeError as error:
            raise CalibrationError(
                f"{self.label(batch)} is run several times, always from the same inputs: {error}; "
                "give as a tensor, or as a list, what it holds"
            ) from error

    def run(
        self,
        batch: int,
        on_seen: OnSeen | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
        answers: Mapping[str, Any] | None = None,
        keep: Callable[[str, Any], None] | None = None,
        on_written: Callable[[str], None] | None = None,
        on_output: OnOutput | None = None,
        compute: Compute = compute_here,
        gradients: bool = False,
    ) -> Any:
        """Run one batch and return the output, or None where a callback raised `Stop`.

        Args:
            batch: number of the batch.
            on_seen: called before every operation that consumes a watched weight.
            weights: what to use in place of weights, by name of their plans; may grow.
            answers: outputs of stages that are not to be run.
            keep: called with the output of every stage that was run.
            on_written: called with the name of every stage that has written to what it was given,
                or to buffers and attributes outside of it.
            on_output: may exchange the output of an operation that consumes a watched weight.
            compute: called in place of every function of torch.
            gradients: record a graph; what the model has in its buffers then belongs to it, and
                stays there until `put_back`.

        Raises:
            CalibrationError: the model failed, or what looks at its weights.
            OperationError: a plug-in that knows an operation failed.
        """
        args, kwargs = self._copied(batch, call_arguments(self.batches[batch]))
        recording = torch.enable_grad() if gradients else torch.no_grad()
        with (
            self,
            contextlib.nullcontext() if gradients else self._as_before(),
            untouched_global_rng(),
            recording,
            self._stages(answers or {}, keep, on_written),
        ):
            instead = {} if weights is None else weights
            watch = Watch(self._own, instead, on_seen, on_output, compute)
            try:
                with watch:
                    return self.model(*args, **kwargs)
            except Stop:
                return None
            except OperationError:
                raise
            except NotTaken as failed:
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

    def put_back(self) -> None:
        """Put back what a run with gradients has done to the model."""
        if self._restore is not None:
            self._restore()

    def taken(self) -> list[Change]:
        """Put back what a run has done to the model so far, and return it; see `Baseline`."""
        return [] if self._restore is None else self._restore.taken()

    def hides(self) -> bool:
        """Return whether the run has changed what `taken` does not reach; see `Baseline`."""
        return self._restore is not None and self._restore.is_written_deeper()

    @contextlib.contextmanager
    def _as_before(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.put_back()

    def _watched(self) -> dict[int, tuple[str, Tensor]]:
        """Return the watched weights as operations receive them."""
        found = {}
        for plan in self.plans:
            for owner in plan.owners:
                tensor = getattr(self.model.get_submodule(owner.module), owner.state)
                found[id(tensor)] = (plan.name, tensor)
        return found

    @contextlib.contextmanager
    def _stages(
        self,
        answers: Mapping[str, Any],
        keep: Callable[[str, Any], None] | None,
        on_written: Callable[[str], None] | None,
    ) -> Iterator[None]:
        """Let stages answer from memory, or have what they return and do reported."""
        changed: list[tuple[nn.Module, Any]] = []
        try:
            for name, module in self.stages.items():
                if name not in answers and keep is None and on_written is None:
                    continue
                forward = module.forward
                if name in answers:
                    forward = _answering(answers[name])
                elif on_written is not None:
                    forward = _checking(name, forward, on_written, self._beside(module))
                if name not in answers and keep is not None:
                    forward = _keeping(name, forward, keep)
                changed.append((module, vars(module).get("forward", _ABSENT)))
                object.__setattr__(module, "forward", forward)
            yield
        finally:
            for module, before in reversed(changed):
                if before is _ABSENT:
                    object.__delattr__(module, "forward")
                else:
                    object.__setattr__(module, "forward", before)

    def _beside(self, stage: nn.Module) -> list[nn.Module]:
        own = {id(module) for module in stage.modules()}
        return [module for module in self.model.modules() if id(module) not in own]


_ABSENT = object()


def _answering(answer: Any) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        return deep_copy(answer)

    return forward


def _keeping(name: str, forward: Any, keep: Callable[[str, Any], None]) -> Any:
    def kept(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        keep(name, out)
        return out

    return kept


def _checking(
    name: str, forward: Any, on_written: Callable[[str], None], others: Sequence[nn.Module]
) -> Any:
    def checked(*args: Any, **kwargs: Any) -> Any:
        before = _versions(args, kwargs, _kept(others))
        out = forward(*args, **kwargs)
        after = _versions(args, kwargs, _kept(others))
        same = (x is y and v == w for (x, v), (y, w) in zip(before, after, strict=False))
        if len(before) != len(after) or not all(same):
            on_written(name)
        return out

    return checked


def _kept(modules: Iterable[nn.Module]) -> list[Any]:
    """Return what modules hold that may be tensors of a run: buffers and plain attributes."""
    return [
        value
        for module in modules
        for name, value in vars(module).items()
        if name not in ("_parameters", "_modules")
        and (isinstance(value, Tensor) or (type(value) in _HOLDING and value))
    ]


_HOLDING = (tuple, list, dict)


def _versions(*values: Any) -> list[tuple[Tensor, int]]:
    """Return what changes when something writes to a tensor of a value, or exchanges one.

    Caches and other objects are left out: what a stage notes there is for itself.
    """
    leaves = tree_leaves(values, is_leaf=lambda x: type(x) not in _HOLDING)
    found = [x for x in leaves if isinstance(x, Tensor)]
    return [(x, 0 if x.is_inference() else x._version) for x in found]
