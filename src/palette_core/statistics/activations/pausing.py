"""Runs that wait at every step until its weights are palettes: each batch runs twice in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from palette_core._common.freed_memory import hand_back, keep_freed
from palette_core._common.rng import all_rng, set_all_rng
from palette_core._common.undoing import undone
from palette_core.model import Change
from palette_core.statistics.activations.restarting import Copies, feed_by_runs, inputs_before
from palette_core.statistics.activations.runs import Runner
from palette_core.statistics.activations.sources import Given
from palette_core.statistics.activations.stages import stage_of
from palette_core.statistics.activations.structure import Step, Structure
from palette_core.statistics.activations.threads import (
    CannotWait,
    Waiting,
    can_wait,
    nothing_drawn,
    settings,
)
from palette_core.statistics.activations.watch import Seen

_LARGE = 1 << 23  # bytes of an input from which on what a run has freed is handed back
_KEPT = 2  # times that size are kept of what a run has freed, twice, before it is handed back
_MOST_REUSED = 2  # weights that are used more than once: each of them costs runs of its own


@dataclass
class Scout:
    """Findings about the first batch beside its structure.

    Attributes:
        copies: take copies of inputs.
        inputs: those copies, by name, of first calls.
        hides: the model keeps something where runs that take turns would mix it up.
        draws: it draws random numbers before it uses a weight.
        largest: bytes of the largest input of a weight.
    """

    runner: Runner
    copies: Copies | None

    def __post_init__(self) -> None:
        self.inputs: dict[str, tuple[Tensor, ...]] = {}
        self.hides = self.draws = False
        self.largest = 0
        self._random = all_rng()

    def see(self, batch: int, seen: Seen) -> None:
        """Look at one use of a weight."""
        self.hides = self.hides or self.runner.hides()
        self.draws = self.draws or all_rng() != self._random
        self.largest = max(self.largest, _input_size(seen))
        if batch == 0 and self.copies is not None and seen.what is not None and seen.call == 0:
            self.inputs[seen.name] = self.copies.of(seen.what.raw)

    def may_wait(self, structure: Structure, n: int) -> bool:
        """Return whether the model's runs can be interrupted, as far as the first batch says."""
        return (
            can_wait(2 * n)
            and not (self.hides or self.runner.hides())
            and _reused(structure, self.runner) is not None
        )


def _reused(structure: Structure, runner: Runner) -> set[str] | None:
    """Return what a run uses more than once; None where runs that start over are cheaper."""
    found = {name for name, calls in structure.calls.items() if calls != 1}
    owners = {plan.name: plan.owners[0].module for plan in runner.plans}
    for name in found:
        stage = stage_of(owners[name], list(runner.stages))
        if structure.calls[name] is None or stage not in (None, owners[name]):
            return None
    return found if len(found) <= _MOST_REUSED else None


class Pausing:
    """The source for models that use every weight once, and the same ones on every batch.

    Of every batch there are two runs, one of the unchanged model and one of what it becomes, that
    wait before the first operation with a weight that is no palette yet. While one waits, others
    run: what it has made of buffers, attributes and random states is put aside. Runs of the
    unchanged model go on at once where less is held at the next step.

    A few weights may be used more than once, as tied ones are: their inputs come from runs that
    start over.

    Args:
        runner: model and batches, entered.
        structure: of the unchanged model on the first batch.
        scout: what else that one has shown.
        decoded: what stands for weights by now, by name; grows.
        batches: numbers of those for calibration.
        compensate: give inputs of the unchanged model, too.
    """

    def __init__(
        self,
        runner: Runner,
        structure: Structure,
        scout: Scout,
        decoded: Mapping[str, Tensor],
        batches: range,
        *,
        compensate: bool,
    ) -> None:
        self._runner, self._structure, self._scout = runner, structure, scout
        self._decoded, self._batches, self._compensate = decoded, batches, compensate
        scout.copies = None  # which hold on to the latest inputs
        keep_freed(_KEPT * scout.largest)
        self._reused = _reused(structure, runner) or set()
        self._done: set[str] = set()
        self._now = [self._run(batch, decoded) for batch in batches]
        self._before: list[_Run] = []
        if compensate:  # the first batch has run: it was the scout
            self._before = [self._run(batch, {}) for batch in batches[1:]]

    def _run(self, batch: int, weights: Mapping[str, Tensor]) -> _Run:
        known = set(self._structure.calls)
        draws = self._scout.draws
        return _Run(self._runner, batch, weights, self._done, known, self._reused, draws=draws)

    def enter(self, stage: str | None, names: Sequence[str]) -> None:
        """Do nothing."""

    def feed(self, step: Step, see: Callable[[Given], None]) -> None:
        """Let every run come to a step, and show what it has there."""
        if self._reused.isdisjoint(step.names):
            with nullcontext() if self._scout.draws else nothing_drawn():
                for batch in self._batches:
                    self._feed(step, batch, see)
        else:
            self._feed_by_runs(step, see)
        self._done.update(step.names)

    def _feed(self, step: Step, batch: int, see: Callable[[Given], None]) -> None:
        before = None
        if batch == 0:
            kept = [self._scout.inputs.pop(name, None) for name in step.names]
            before = kept[0]
        elif self._before:
            at = self._before[batch - 1].advance(step)
            before = None if at is None or at.what is None else at.what.raw
        seen = self._now[batch].advance(step)
        if seen is None:
            return
        for name in step.names:
            what = seen.what
            if what is not None and name != seen.name:
                what = replace(what, view=self._structure.views[name])
            see(Given(name, batch, 0, what, seen.op_type, before))
        if batch > 0 and self._before and self._holds_less_after(step):
            self._before[batch - 1].go_on(step)

    def _holds_less_after(self, step: Step) -> bool:
        """Return whether the inputs of the step after one are smaller than its own."""
        steps, shapes = self._structure.steps, self._structure.shapes
        at = steps.index(step)
        inputs = [shapes.get((each.names[0], 0, 0), ()) for each in steps[at : at + 2]]
        sizes = [sum(shape.numel() for shape in each) for each in inputs]
        return len(sizes) == 2 and sizes[1] < sizes[0]

    def _feed_by_runs(self, step: Step, see: Callable[[Given], None]) -> None:
        before = {}
        if self._compensate and self._decoded:
            before = inputs_before(
                self._runner, self._structure, self._batches, {}, step.stage, step.names
            )
        feed_by_runs(
            self._runner, self._structure, self._batches, {}, step, self._decoded, before, see
        )

    def leave(self, stage: str | None, *, changed: bool) -> None:
        """Start over where runs have gone on with weights that were changed again."""
        del stage
        if changed:
            _close(self._now)
            self._now = [self._run(batch, self._decoded) for batch in self._batches]

    def complete(self) -> None:
        """Let the runs of what the model has become end, as they may have more to show.

        Raises:
            CannotWait: they have.
        """
        before, self._before = self._before, []
        _close(before)  # there is nothing left that their inputs could be compared with
        for run in self._now:
            run.advance(None)

    def close(self) -> None:
        """End all runs."""
        self._scout.inputs.clear()
        _close([*self._now, *self._before])


class _Run:
    """One batch's run, which waits before every operation with a weight that is not done.

    Args:
        runner: model and batches.
        batch: which one.
        weights: what to use in place of weights; grows.
        done: names of weights at which it does not wait; grows.
        known: names of weights that steps will come to; others cannot be waited at.
        reused: weights that may be used again.
        draws: it may draw random numbers: put the states that it has left aside while it waits.
    """

    def __init__(
        self,
        runner: Runner,
        batch: int,
        weights: Mapping[str, Tensor],
        done: set[str],
        known: set[str],
        reused: set[str],
        *,
        draws: bool,
    ) -> None:
        self._runner, self._batch, self._weights = runner, batch, weights
        self._done, self._known, self._reused = done, known, reused
        self._met = reused | done  # what was done before has been fed by runs before this one
        self._draws = draws
        self._at: Seen | None = None
        self._changes: list[Change] = []
        self._random: Any = None
        self._waiting = Waiting(self._go)

    def advance(self, step: Step | None) -> Seen | None:
        """Let it run on to a weight that is not done, and return that where it is of a step."""
        while not self._waiting.ended and (self._at is None or self._at.name in self._done):
            self._resume()
        if step is None or self._at is None or self._at.name not in step.names:
            return None
        self._met.update(step.names)
        return self._at

    def go_on(self, step: Step) -> None:
        """Let it run on past a step that is not done: the unchanged model awaits no palettes."""
        while not self._waiting.ended and self._at is not None and self._at.name in step.names:
            if self._is_new(self._at):
                raise CannotWait
            self._resume()

    def _resume(self) -> None:
        usual, set_so = all_rng() if self._draws else None, settings()
        for change in self._changes:
            change()
        if self._random is not None:
            set_all_rng(self._random)
        self._at, self._changes, self._random = None, [], None
        try:
            self._waiting.resume()
        except Exception as error:  # perhaps for the thread alone: runs that start over will tell
            raise CannotWait from error
        if self._waiting.ended:
            return
        if settings() != set_so:
            raise CannotWait
        if self._at is not None and _input_size(self._at) >= _LARGE:
            hand_back()
        self._changes = self._runner.taken()
        if usual is not None:
            self._put_aside(usual)
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch._C._cuda_clearCublasWorkspaces()  # one for every thread

    def _put_aside(self, usual: tuple[object, ...]) -> None:
        now = all_rng()
        if now != usual:
            self._random = now
            set_all_rng(usual)

    def _go(self, waiting: Waiting) -> None:
        def see(seen: Seen) -> None:
            if seen.name not in self._done:
                if seen.name not in self._known:
                    raise CannotWait
                self._at = seen
                waiting.wait()
            elif self._is_new(seen):  # palettized weights before it have sent inputs elsewhere
                raise CannotWait

        self._runner.run(self._batch, see, weights=self._weights, on_any=waiting.check)

    def _is_new(self, seen: Seen) -> bool:
        """Return whether a use of a weight that is done has not been fed to it."""
        return seen.name not in self._met or (seen.call > 0 and seen.name not in self._reused)

    def end(self) -> None:
        """Have it end."""
        self._waiting.end()

    def close(self) -> None:
        """End it."""
        self._at, self._changes = None, []
        self._waiting.close()


def _input_size(seen: Seen) -> int:
    return 0 if seen.what is None else sum(x.nbytes for x in seen.what.raw)


def _close(runs: Sequence[_Run]) -> None:
    # All are told before any is waited for: one may wait for what another holds.
    with undone(list(runs), _Run.close), undone(list(runs), _Run.end):
        pass
