"""Runs that start over for every step, in which finished stages answer from memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from palette_core._common.pytrees import deep_copy
from palette_core.statistics.activations.collect import CallKey
from palette_core.statistics.activations.runs import Runner, Stop
from palette_core.statistics.activations.sources import Given
from palette_core.statistics.activations.structure import Step, Structure
from palette_core.statistics.activations.watch import Seen

Inputs = dict[CallKey, tuple[Tensor, ...]]
"""What weights are multiplied with, by call."""

_LATEST = 4  # tensors that are compared with what comes next


class Replays:
    """Runs of some batches in which finished stages answer from memory.

    Args:
        runner: model and batches.
        structure: of the unchanged model.
        batches: numbers of those that are run.
        decoded: what stands for weights by now, by name; grows.

    Attributes:
        first: outputs of finished stages by batch, of the unchanged model.
        now: the same of the model as it is by now.
    """

    def __init__(
        self,
        runner: Runner,
        structure: Structure,
        batches: Iterable[int],
        decoded: Mapping[str, Tensor],
    ) -> None:
        self._runner, self._structure, self._decoded = runner, structure, decoded
        self.first: dict[int, dict[str, Any]] = {batch: {} for batch in batches}
        self.now: dict[int, dict[str, Any]] = {batch: {} for batch in self.first}

    def finish(self, stage: str | None) -> None:
        """Let a stage of the unchanged model answer from memory from now on."""
        for batch, outputs in self._structure.outputs.items():
            if stage is not None and stage in outputs and batch in self.first:
                self.first[batch][stage] = outputs[stage]

    def keep(self, stage: str) -> None:
        """Run a palettized stage on every batch, and let it answer from memory from now on."""
        for batch, known in self.now.items():
            ran, output = self.output(stage, batch, known, self._decoded)
            if ran:
                known[stage] = output

    def output(
        self,
        stage: str | None,
        batch: int,
        answers: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> tuple[bool, Any]:
        """Return what a stage returns; where it is None, or does not run, what the model does."""
        kept: list[Any] = []

        def keep(name: str, output: Any) -> None:
            if name == stage:
                kept.append(deep_copy(output))
                raise Stop

        whole = self._runner.run(
            batch, weights=weights, answers=answers, keep=None if stage is None else keep
        )
        return (True, kept[0]) if kept else (False, whole)


class Restarting:
    """The source for any model: every step's inputs come from runs of their own.

    A block is run about as often as it has different inputs, plus twice.

    Args:
        runner: model and batches.
        structure: of the unchanged model on all batches.
        replays: of all batches.
        decoded: what stands for weights by now, by name; grows.
        batches: numbers of those for calibration.
        compensate: give inputs of the unchanged model, too.
    """

    def __init__(
        self,
        runner: Runner,
        structure: Structure,
        replays: Replays,
        decoded: Mapping[str, Tensor],
        batches: range,
        *,
        compensate: bool,
    ) -> None:
        self._runner, self._structure, self._replays = runner, structure, replays
        self._decoded, self._batches, self._compensate = decoded, batches, compensate
        self._before: Inputs = {}

    def enter(self, stage: str | None, names: Sequence[str]) -> None:
        """Run the unchanged model for the inputs of these weights."""
        self._before = {}
        if self._compensate:
            answers = self._replays.first
            self._before = inputs_before(
                self._runner, self._structure, self._batches, answers, stage, names
            )

    def feed(self, step: Step, see: Callable[[Given], None]) -> None:
        """Run the model as it is by now until the last call of a step."""
        feed_by_runs(
            self._runner,
            self._structure,
            self._batches,
            self._replays.now,
            step,
            self._decoded,
            self._before,
            see,
        )

    def leave(self, stage: str | None, *, changed: bool) -> None:
        """Do nothing: runs are of the model as it is by then."""

    def complete(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Let go of the inputs."""
        self._before = {}


def inputs_before(
    runner: Runner,
    structure: Structure,
    batches: range,
    answers: Mapping[int, Mapping[str, Any]],
    stage: str | None,
    names: Sequence[str],
) -> Inputs:
    """Return copies of what the unchanged model multiplies some weights of a stage with."""
    found: Inputs = {}
    for batch in batches:
        copy = Copies()

        def see(seen: Seen, batch: int = batch, copy: Copies = copy) -> None:
            if seen.what is not None:
                found[seen.name, batch, seen.call] = copy.of(seen.what.raw)

        runner.run(
            batch,
            structure.until(names, see),
            answers=answers.get(batch, {}),
            keep=_stop_after(stage),
        )
    return found


def feed_by_runs(
    runner: Runner,
    structure: Structure,
    batches: range,
    answers: Mapping[int, Mapping[str, Any]],
    step: Step,
    decoded: Mapping[str, Tensor],
    before: Inputs,
    see: Callable[[Given], None],
) -> None:
    """Run the model as it is by now on every batch, and show all calls of the weights of a step."""
    for batch in batches:

        def show(seen: Seen, batch: int = batch) -> None:
            earlier = before.get((seen.name, batch, seen.call))
            see(Given(seen.name, batch, seen.call, seen.what, seen.op_type, earlier))

        runner.run(
            batch,
            structure.until(step.names, show),
            weights=decoded,
            answers=answers.get(batch, {}),
            keep=_stop_after(step.stage),
        )


class Copies:
    """Copies of tensors; calls that follow each other with one input share its copy."""

    def __init__(self) -> None:
        # With the tensors themselves, so that their identities are not given to others.
        self._known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def of(self, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return copies."""
        return tuple(self._copy(x) for x in raw)

    def _copy(self, x: Tensor) -> Tensor:
        key = (id(x), 0 if x.is_inference() else x._version)
        if key not in self._known:
            if len(self._known) == _LATEST:
                self._known.pop(next(iter(self._known)))
            self._known[key] = (x, x.detach().clone())
        return self._known[key][1]


def _stop_after(stage: str | None) -> Callable[[str, Any], None] | None:
    def stop(name: str, output: Any) -> None:
        del output
        if name == stage:
            raise Stop

    return None if stage is None else stop
