"""Runs that wait at every step until its weights are palettes: each batch runs twice in all."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from palette_core._common.freed_memory import hand_back_much
from palette_core._common.rng import all_rng
from palette_core.plugins import Consumption
from palette_core.statistics.activations.outputs import (
    are_smaller,
    note,
    plain_outputs,
    products_with,
    vectors_of,
)
from palette_core.statistics.activations.paused_run import PausedRun, close_all
from palette_core.statistics.activations.restarting import Copies, feed_by_runs, inputs_before
from palette_core.statistics.activations.runs import Runner
from palette_core.statistics.activations.sources import Given
from palette_core.statistics.activations.stages import stage_of
from palette_core.statistics.activations.structure import Step, Structure
from palette_core.statistics.activations.threads import (
    can_wait,
    nothing_drawn,
)
from palette_core.statistics.activations.watch import Seen

_MOST_REUSED = 2  # weights that are used more than once: each of them costs runs of its own


@dataclass
class Scout:
    """Findings about the first batch beside its structure.

    Attributes:
        copies: take copies of inputs.
        takes_outputs: keep outputs, too, where they are smaller.
        inputs: those copies, by name, of first calls.
        outputs: see `plain_outputs`, by name, of first calls.
        shapes: of the weights, by name.
        hides: the model keeps something where runs that take turns would mix it up.
        draws: it draws random numbers before it uses a weight.
    """

    runner: Runner
    copies: Copies | None
    takes_outputs: bool = False

    def __post_init__(self) -> None:
        self.inputs: dict[str, tuple[Tensor, ...]] = {}
        self.outputs: dict[str, Tensor] = {}
        self.shapes = {plan.name: plan.layout.shape for plan in self.runner.plans}
        self.hides = self.draws = False
        self._random = all_rng()

    def see(self, batch: int, seen: Seen) -> None:
        """Look at one use of a weight."""
        self.hides = self.hides or self.runner.hides()
        self.draws = self.draws or all_rng() != self._random
        if batch == 0 and self.copies is not None and seen.what is not None and seen.call == 0:
            self.inputs[seen.name] = self.copies.of(seen.what.raw)

    def look(self, batch: int, seen: Seen, out: Any) -> Any:
        """Look at what an operation with a weight has returned, and return that."""
        if self.takes_outputs and batch == 0 and seen.name in self.inputs and seen.call == 0:
            raw, what = self.inputs[seen.name], seen.what
            if what is not None and not any(x.is_inference() for x in what.raw):
                small = are_smaller(what.view, self.shapes[seen.name], [x.shape for x in raw])
                noted = note(what, out) if small else None
                made = None if noted is None else plain_outputs(noted)
                if made is not None:
                    self.outputs[seen.name] = made
        return out

    def settle(self, names: Container[str]) -> None:
        """Keep the outputs of some weights in place of their inputs, and of others none."""
        self.copies = None  # which hold on to the latest inputs
        self.outputs = {name: made for name, made in self.outputs.items() if name in names}
        for name in self.outputs:
            del self.inputs[name]

    def close(self) -> None:
        """Let go of all of it."""
        self.inputs.clear()
        self.outputs.clear()

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
        compensate: give inputs of the unchanged model, too, or outputs where the scout takes them.
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
        self._reused = _reused(structure, runner) or set()
        self._done: set[str] = set()
        self._now = [self._run(batch, decoded) for batch in batches]
        self._before: list[PausedRun] = []
        scout.settle([step.names[0] for step in structure.steps if self._has_small_outputs(step)])
        if compensate:  # the first batch has run: it was the scout
            self._before = [self._run(batch, {}) for batch in batches[1:]]

    def _run(self, batch: int, weights: Mapping[str, Tensor]) -> PausedRun:
        known = set(self._structure.calls)
        draws = self._scout.draws
        return PausedRun(self._runner, batch, weights, self._done, known, self._reused, draws=draws)

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
        hand_back_much()

    def _feed(self, step: Step, batch: int, see: Callable[[Given], None]) -> None:
        before, outputs, by_outputs = None, None, self._goes_by_outputs(step)
        if batch == 0:
            kept = [self._scout.inputs.pop(name, None) for name in step.names]
            before, outputs = kept[0], self._scout.outputs.pop(step.names[0], None)
        elif self._before:
            before, outputs = self._before[batch - 1].show(step, by_outputs=by_outputs)
        seen = self._now[batch].advance(step)
        if seen is None:
            return
        if by_outputs and seen.what is not None:
            outputs = _outputs(seen.what, before, outputs)
            before = None
        for name in step.names:
            what = seen.what
            if what is not None and name != seen.name:
                what = replace(what, view=self._structure.views[name])
            see(Given(name, batch, 0, what, seen.op_type, before, outputs))
        if batch > 0 and self._before and self._holds_less_after(step):
            self._before[batch - 1].go_on(step)

    def _goes_by_outputs(self, step: Step) -> bool:
        """Return whether to give what the unchanged model makes of its inputs to a step."""
        return bool(self._decoded) and self._has_small_outputs(step)

    def _has_small_outputs(self, step: Step) -> bool:
        if not self._scout.takes_outputs or len(step.names) != 1:
            return False
        (name,) = step.names
        inputs, view = self._structure.shapes.get((name, 0, 0), ()), self._structure.views.get(name)
        small = view is not None and are_smaller(view, self._scout.shapes[name], inputs)
        return small and self._holds_less_after(step)

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
            close_all(self._now)
            self._now = [self._run(batch, self._decoded) for batch in self._batches]

    def complete(self) -> None:
        """Let the runs of what the model has become end, as they may have more to show.

        Raises:
            CannotWait: they have.
        """
        before, self._before = self._before, []
        close_all(before)  # there is nothing left that their inputs could be compared with
        for run in self._now:
            run.advance(None)

    def close(self) -> None:
        """End all runs."""
        self._scout.close()
        close_all([*self._now, *self._before])


def _outputs(
    what: Consumption, before: tuple[Tensor, ...] | None, outputs: Tensor | None
) -> Tensor:
    """Return what a weight makes of its inputs in the unchanged model, or else of its own."""
    own = vectors_of(what.raw)
    if before is not None and vectors_of(before).shape == own.shape:
        return products_with(what.weight, before)
    if outputs is not None and len(outputs) == len(own):
        return outputs
    return products_with(what.weight, what.raw)
