"""Stretches of a model: up to its blocks, one block, what follows them; each run by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from palette_core._common.pytrees import deep_copy
from palette_core.errors import CalibrationError
from palette_core.model import ExampleInputs, call_arguments
from palette_core.statistics.activations import Runner
from palette_core.statistics.activations.restarting import feed_by_runs, inputs_before
from palette_core.statistics.activations.sources import Given
from palette_core.statistics.activations.structure import Step, Structure
from palette_core.streaming.kept_outputs import BEFORE, NOW, KeptOutputs
from palette_core.streaming.skeleton import States


class _Reached(BaseException):
    """Ends a run at the end of its stretch."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class Stretch(nn.Module):
    """A stretch of a model, as a model of its own whose input is the number of a batch.

    Blocks before it return what the last of them has returned, from files. It returns what its
    block does. Modules have the names that they have in the model.

    Args:
        model: the whole one; the states of this stretch are loaded.
        blocks: names of all of the blocks.
        at: the number of the block; -1 is what runs before the first one, and the number of
            blocks is what runs after the last.
        batches: the model's inputs.
        kept: what blocks have returned.
        states: of the model.
        settled: decoded weights outside of the blocks, by names of states: what the model has in
            their places by now.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[str],
        at: int,
        batches: Sequence[ExampleInputs],
        kept: KeptOutputs,
        states: States,
        settled: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        vars(self)["_modules"] = model._modules
        vars(self)["_parameters"] = model._parameters
        where = _Where(model, blocks, at, batches, kept, states, settled)
        self._run = where.run
        self.unchanged = where.unchanged
        self.opened = where.opened

    def forward(self, batch: int) -> Any:
        """Run the stretch on a batch; returns what its block returns."""
        return self._run(batch)


class _Where:
    """Parts of a stretch; no module, as runs change what it says."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[str],
        at: int,
        batches: Sequence[ExampleInputs],
        kept: KeptOutputs,
        states: States,
        settled: Mapping[str, Tensor],
    ) -> None:
        self._model, self._at = model, at
        self._blocks = [model.get_submodule(name) for name in blocks]
        self._batches, self._kept = batches, kept
        self._states, self._settled = states, settled
        self._version, self._batch = NOW, 0

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Let the blocks before answer from files, and runs end with the stretch."""
        with contextlib.ExitStack() as stack:
            for block in self._blocks[: max(0, self._at)]:
                stack.enter_context(_replaced(block, self._answer))
            if self._at < 0:
                stack.enter_context(_replaced(self._blocks[0], self._stop))
            elif self._at < len(self._blocks):
                hook = self._blocks[self._at].register_forward_hook(_end)
                stack.callback(hook.remove)
            yield

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Be a stretch of the unchanged model for a while."""
        self._version = BEFORE
        try:
            yield
        finally:
            self._version = NOW

    def run(self, batch: int) -> Any:
        """Run it on a batch.

        Raises:
            CalibrationError: its block does not run.
        """
        self._batch = batch
        args, kwargs = deep_copy(call_arguments(self._batches[batch]))
        settled = self._settled if self._version == NOW else {}
        try:
            with self._states.exchanged(settled):
                output = self._model(*args, **kwargs)
        except _Reached as end:
            return end.output
        if self._at < len(self._blocks):
            raise CalibrationError("the model did not run it, and it is said to be a block")
        return output

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        last = min(self._at, len(self._blocks)) - 1
        return self._kept.get(last, self._version, self._batch)

    def _stop(self, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise _Reached(None)


def _end(module: nn.Module, args: Any, output: Any) -> None:
    del module, args
    raise _Reached(output)


@contextlib.contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(module)
    before = {"forward": own["forward"]} if "forward" in own else {}
    own["forward"] = forward
    try:
        yield
    finally:
        del own["forward"]
        own.update(before)


class StretchSource:
    """The source of inputs for a stretch: of each batch one run after the other, batch by batch.

    No more is in memory than what one batch needs. See `InputSource`.

    Args:
        stretch: opened, its states loaded.
        compensate: give inputs of the unchanged model, too.
        runner: runs the stretch.
        structure: of it.
        decoded: what stands for weights by now, by name; grows.
    """

    def __init__(
        self,
        stretch: Stretch,
        compensate: bool,
        runner: Runner,
        structure: Structure,
        decoded: Mapping[str, Tensor],
    ) -> None:
        self._stretch, self._compensate = stretch, compensate
        self._runner, self._structure, self._decoded = runner, structure, decoded

    def enter(self, stage: str | None, names: Sequence[str]) -> None:
        """Do nothing."""

    def feed(self, step: Step, see: Callable[[Given], None]) -> None:
        """Run the unchanged stretch, and as it is by now, until the last call of a step."""
        for batch in range(len(self._runner.batches)):
            one, before = range(batch, batch + 1), {}
            if self._compensate:
                with self._stretch.unchanged():
                    before = inputs_before(
                        self._runner, self._structure, one, {}, step.stage, step.names
                    )
            decoded = in_dtype_of(self._runner, self._decoded)
            feed_by_runs(self._runner, self._structure, one, {}, step, decoded, before, see)

    def leave(self, stage: str | None, *, changed: bool) -> None:
        """Do nothing: runs are of the stretch as it is by then."""

    def complete(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def in_dtype_of(runner: Runner, decoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return decoded weights in the dtypes that they have in the model, not those of the source."""
    found = {}
    for plan in runner.plans:
        if plan.name in decoded:
            owner = plan.owners[0]
            weight: Tensor = getattr(runner.model.get_submodule(owner.module), owner.state)
            found[plan.name] = decoded[plan.name].to(weight.dtype)
    return found


def source_of(
    stretch: Stretch, *, compensate: bool
) -> Callable[[Runner, Structure, Mapping[str, Tensor]], StretchSource]:
    """Return what makes the source of a stretch once its structure is known."""
    return partial(StretchSource, stretch, compensate)
