"""Data-aware palettization of a checkpoint, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from palette_core._common.progress import Advance
from palette_core._common.rng import untouched_global_rng
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.engine.stage_by_stage import walk_through
from palette_core.errors import CalibrationError, CheckpointError
from palette_core.model import ExampleInputs
from palette_core.model.graph import Owner
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.clusterers import damping_of
from palette_core.statistics.activations import Feeder, Findings, InputCalibration, Runner
from palette_core.statistics.activations.structure import find_structure
from palette_core.storage.checksums import checksum
from palette_core.streaming.batches import BlockCalibration
from palette_core.streaming.job import read_sealed, write_sealed
from palette_core.streaming.kept_outputs import BEFORE, NOW, KeptOutputs
from palette_core.streaming.parts import Task, decoded_part, write_part
from palette_core.streaming.skeleton import States
from palette_core.streaming.source import SourceCheckpoint
from palette_core.streaming.stretches import Stretch, in_dtype_of, source_of

_PROGRESS = "blocks.json"
_KEPT = "outputs"
_AHEAD = -1


class BlockByBlock:
    """A run through a checkpoint's model, which palettizes what is in it.

    What is finished is in the parts of the weights, and, for the block after, in files with what
    the block before has returned. A run goes on from the last block that is whole.

    Args:
        source: the checkpoint.
        tasks: of all weights that are to be palettized.
        calibration: batches and model.
        folder: where unfinished work is kept.
        executor: who clusters.

    Raises:
        CheckpointError: checkpoint and model do not fit.
    """

    def __init__(
        self,
        source: SourceCheckpoint,
        tasks: Iterable[Task],
        calibration: BlockCalibration,
        folder: Path,
        executor: Executor,
    ) -> None:
        self._calibration, self._executor, self._folder = calibration, executor, folder
        self._model = calibration.skeleton.model
        self._blocks = calibration.skeleton.block_names()
        self._states = States(calibration.skeleton, source)
        self._tasks = {
            state: task
            for task in tasks
            if (state := self._states.names.get(task.span.name)) is not None
        }
        # Of weights that are tied, and stored twice, the first in the model decides for both.
        self._twins: dict[str, list[str]] = {}
        second: set[str] = set()
        for state in self._states.outside(()):
            if state in self._tasks and state not in second:
                twins = [other for other in self._states.twins(state) if other in self._tasks]
                self._twins[state] = twins
                second.update(twins)
        self._first = list(self._twins)
        self._plans = {
            state: _placed(task.plan, self._states.sharing(state))
            for state, task in self._tasks.items()
        }
        self._damping = _damping(self._plans.values(), executor.catalog)
        self._check_owners()
        self._settled: dict[str, Tensor] = {}
        self._missing: dict[str, str] = {}
        self._done: dict[str, None] = {}
        (folder / _KEPT).mkdir(exist_ok=True)
        self._kept = KeptOutputs(folder / _KEPT)

    def _check_owners(self) -> None:
        for state in self._tasks:
            sharing = (*self._states.sharing(state), *self._twins.get(state, ()))
            homes = {self._home(name) for name in sharing}
            if len(homes) > 1:
                raise CheckpointError(
                    f"{state} is used in several blocks of the model, which are palettized one by "
                    "one; leave it dense with None, or palettize without calibration"
                )

    def _home(self, state: str) -> str | None:
        return next((block for block in self._blocks if state.startswith(f"{block}.")), None)

    @property
    def stored_names(self) -> frozenset[str]:
        """Names of the weights that come out of this, in the checkpoint."""
        return frozenset(task.span.name for task in self._tasks.values())

    def run(self, is_finished: Callable[[Task], bool], advance: Advance) -> dict[str, str]:
        """Do what is left to do.

        Args:
            is_finished: whether a weight's part, or what was made of it, is there.
            advance: called with the name of a weight and 1 when it is done.

        Returns:
            by the names of the checkpoint why a weight that needs moments had none; of weights
            that an earlier run has done, too.

        Raises:
            CalibrationError: the model failed on a batch.
            ClusteringError: an algorithm failed.
            CheckpointError: checkpoint and model do not fit, or a file is damaged.
            OSError: a file cannot be read or written.
        """
        at = self._resumed(is_finished, advance)
        outside = list(self._states.outside(self._blocks))
        with untouched_global_rng(), self._states.loaded(outside):
            for number in range(at, len(self._blocks) + 1):
                try:
                    self._stretch(number, advance)
                except CalibrationError as error:
                    within = self._blocks[min(max(0, number), len(self._blocks) - 1)]
                    where = within if 0 <= number < len(self._blocks) else f"outside of {within}"
                    said = str(error).replace(Stretch.__name__, type(self._model).__name__, 1)
                    raise CalibrationError(f"{where}: {said}") from error
                self._note(number)
        return self._missing

    # --- what is finished -------------------------------------------------------------------------

    def _resumed(self, is_finished: Callable[[Task], bool], advance: Advance) -> int:
        """Return the number of the first stretch that is not finished."""
        path = self._folder / _PROGRESS
        if not path.is_file():
            return _AHEAD
        found = read_sealed(path)
        last: int = found.value["finished"]
        done = [self._tasks.get(state) for state in found.value["done"]]
        whole = all(task is not None and is_finished(task) for task in done)
        if not whole or self._kept.checksums(last) != found.checksums:
            path.unlink()  # the power failed, or somebody was here: all of it comes again
            return _AHEAD
        self._done |= dict.fromkeys(found.value["done"])
        self._missing |= found.value["missing"]
        if last < len(self._blocks):
            for state in found.value["settled"]:
                self._settled[state] = decoded_part(self._tasks[state])
        for state in found.value["done"]:
            advance(state, 1)
        return last + 1

    def _note(self, number: int) -> None:
        told = {
            "finished": number,
            "done": list(self._done),
            "settled": list(self._settled),
            "missing": self._missing,
        }
        write_sealed(self._folder / _PROGRESS, told, self._kept.checksums(number))
        self._kept.keep_only(number)

    # --- stretches --------------------------------------------------------------------------------

    def _stretch(self, number: int, advance: Advance) -> None:
        """Palettize what is in a stretch, and keep what its block returns for the next one."""
        blocks = self._blocks[number : number + 1] if number >= 0 else ()
        inside = [state for state in self._first if self._home(state) in (blocks or (None,))]
        states = [state for state in inside if state not in self._settled]
        if not blocks and not any(self._plans[state].name in self._damping for state in states):
            return  # no data is needed
        calibration = self._calibration
        stretch = Stretch(
            self._model,
            self._blocks,
            number,
            calibration.batches,
            self._kept,
            self._states,
            self._settled,
        )
        with self._states.loaded(self._states.inside(blocks)), stretch.opened():
            if number == _AHEAD:
                states = self._used(stretch, states)
            decoded = self._palettize(stretch, states, advance) if states else {}
            if blocks and number + 1 < len(self._blocks) + bool(self._outside_left()):
                self._keep(number, stretch, states, decoded)
        if number == _AHEAD:
            for state in states:
                for name in (state, *self._twins[state]):
                    self._settled[name] = decoded[self._plans[state].name]

    def _outside_left(self) -> list[str]:
        outside = [state for state in self._first if self._home(state) is None]
        return [state for state in outside if state not in self._settled]

    def _used(self, stretch: Stretch, states: Sequence[str]) -> list[str]:
        """Return what the beginning of the model uses."""
        runner = Runner(stretch, [self._plans[state] for state in states], self._numbers())
        calls = find_structure(runner, range(len(runner.batches)), keep=(), answers=False).calls
        return [state for state in states if self._plans[state].name in calls]

    def _palettize(
        self, stretch: Stretch, states: Sequence[str], advance: Advance
    ) -> Mapping[str, Tensor]:
        """Palettize weights and write their parts; returns what they decode to, by name."""
        plans = [self._plans[state] for state in states]
        compensate = self._calibration.compensate
        options = InputCalibration(self._numbers(), sequential=True, compensate=compensate)
        findings = Findings(names=frozenset(plan.name for plan in plans))
        feeder = Feeder(
            stretch, plans, options, findings, source_of(stretch, compensate=compensate)
        )
        tasks = [self._tasks[state] for state in states]
        jobs = [Job(plan, task.span.mapped()) for plan, task in zip(plans, tasks, strict=True)]
        damping = {n: d for n, d in self._damping.items() if n in findings.names}
        results, missing = walk_through(jobs, feeder, damping, self._executor, advance)
        for state, job, result in zip(states, jobs, results, strict=True):
            source = checksum(job.weight)
            for name in (state, *self._twins[state]):
                task = self._tasks[name]
                write_part(task, result, source)
                self._done[name] = None
                if job.plan.name in missing:
                    self._missing[task.span.name] = missing[job.plan.name]
        return feeder.decoded

    def _keep(
        self,
        number: int,
        stretch: Stretch,
        states: Sequence[str],
        decoded: Mapping[str, Tensor],
    ) -> None:
        """Keep what a block returns as it is by now, and as it was."""
        runner = Runner(stretch, [self._plans[state] for state in states], self._numbers())
        with runner:
            decoded = in_dtype_of(runner, decoded)
            for batch in range(len(self._calibration.batches)):
                self._kept.put(number, NOW, batch, runner.run(batch, weights=decoded))
                if self._calibration.compensate:
                    with stretch.unchanged():
                        self._kept.put(number, BEFORE, batch, runner.run(batch))

    def _numbers(self) -> tuple[ExampleInputs, ...]:
        return tuple((number,) for number in range(len(self._calibration.batches)))


def _damping(plans: Iterable[TensorPlan], catalog: Catalog) -> dict[str, float | None]:
    """Return the damping of weights whose algorithm needs moments, by name; see `walk_through`."""
    return {
        plan.name: damping_of(
            catalog.clusterers.find(plan.algorithm), plan.algorithm_options, plan.name
        )
        for plan in plans
        if catalog.clusterers.get(plan.algorithm).needs_moments
    }


def _placed(plan: TensorPlan, states: Sequence[str]) -> TensorPlan:
    """Return the plan of a weight where it stands in the model."""
    owners = (name.rpartition(".") for name in states)
    return replace(plan, owners=tuple(Owner(module, key) for module, _, key in owners))
