"""Work on one checkpoint: weights into parts, parts into files, on from where it stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palette_core._common.progress import Advance, progress_bar
from palette_core._common.rng import untouched_global_rng
from palette_core.config import KMeansPalettizerConfig
from palette_core.engine.executor import Executor
from palette_core.errors import CheckpointError, WorkerError
from palette_core.storage.checkpoint_folders import SINGLE
from palette_core.storage.span_writing import DamagedPieceError
from palette_core.storage.tensor_spans import TensorFile
from palette_core.streaming.batches import BlockCalibration
from palette_core.streaming.beside import write_beside
from palette_core.streaming.block_by_block import BlockByBlock
from palette_core.streaming.parts import Task, palettize_tensor, read_part
from palette_core.streaming.planning import CheckpointPlan
from palette_core.streaming.shards import assemble
from palette_core.streaming.source import SourceCheckpoint
from palette_core.streaming.workplace import Workplace

_PATIENCE = 2  # times that workers may be killed without one weight more being finished


@dataclass
class Run:
    """Work of one checkpoint, shard by shard.

    Call `find_finished`, then `calibrated` where there is something to calibrate with, then
    `finish`.
    """

    source: SourceCheckpoint
    planned: CheckpointPlan
    config: KMeansPalettizerConfig
    place: Workplace
    executor: Executor
    tasks: dict[str, list[Task]] = field(default_factory=dict)
    told: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    by_data: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        plans = self.planned.by_stored_name()
        for number, span in enumerate(self.source.spans()):
            tasks = self.tasks.setdefault(span.path.name, [])
            if span.name in plans:
                tasks.append(Task(plans[span.name], span, self.place.part(number)))

    def find_finished(self) -> None:
        """Find what an earlier run has finished.

        Raises:
            CheckpointError: it was made of other weights, or its record is damaged.
        """
        names = _names(self.source.shards)
        for shard in self.source.shards:
            found = self.place.shard(names[shard.path.name])
            if found is not None:
                self._done(shard, found)
        if not self.place.is_surely_same:
            self._check_finished_weights()

    def calibrated(self, calibration: BlockCalibration) -> dict[str, str]:
        """Palettize the weights of a model block by block, by what comes to them.

        Returns:
            why a weight that needs moments had none, by the names of the checkpoint.
        """
        walk = BlockByBlock(
            self.source, self._all_tasks(), calibration, self.place.work, self.executor
        )
        self.by_data = walk.stored_names
        with progress_bar(
            "Palettizing block by block", len(self.by_data), show=self.executor.progress
        ) as advance:
            return walk.run(self._is_finished, advance)

    def finish(self, about: Mapping[str, Any]) -> dict[str, float]:
        """Do all that is left; returns the seconds that each weight took, by name."""
        names = _names(self.source.shards)
        total = sum(task.span.size // task.plan.dtype.itemsize for task in self._all_tasks())
        with (
            untouched_global_rng(),
            progress_bar(
                "Palettizing", total, show=self.executor.progress, unit="weights"
            ) as advance,
        ):
            self._palettize(names, advance)
        manifest, checksums = write_beside(self.source, self.place.out, names, self.told)
        self.place.finish({"made_of": dict(about), **manifest}, checksums)
        return {name: took for told in self.told.values() for name, took in told["seconds"].items()}

    def _palettize(self, names: Mapping[str, str], advance: Advance) -> None:
        waiting = {shard.path.name: shard for shard in self.source.shards}
        for task in self._all_tasks():
            if self._is_finished(task):
                advance("", _size(task))
        for name in [n for n in waiting if n in self.told]:
            del waiting[name]
        tries = _PATIENCE
        while waiting:
            for name in list(waiting):
                if not any(map(self._is_missing, self.tasks.get(name, ()))):
                    self._assemble(waiting.pop(name), names[name], advance)
            try:
                for task in self.executor.each(palettize_tensor, self._queue(waiting)):
                    tries = _PATIENCE
                    name = task.span.path.name
                    advance(task.span.name, _size(task))
                    if not any(map(self._is_missing, self.tasks[name])):
                        self._assemble(waiting.pop(name), names[name], advance)
            except WorkerError:
                tries -= 1
                if tries == 0:
                    raise

    def _queue(self, waiting: Mapping[str, TensorFile]) -> Iterator[Task]:
        for name in list(waiting):
            # Largest first: the last worker to finish then has a small one.
            for task in sorted(self.tasks[name], key=lambda task: -task.span.size):
                if self._is_missing(task):
                    yield task

    def _assemble(self, shard: TensorFile, name: str, advance: Advance) -> None:
        """Write the file of a shard; parts that turn out to be damaged are made again."""
        tasks = self.tasks.get(shard.path.name, [])
        reasons = self._reasons()
        while True:
            try:
                fresh = self.place.fresh_shard(name)
                advance(name, 0)
                told = assemble(shard, tasks, reasons, self.config, fresh)
                break
            except DamagedPieceError as error:
                (damaged,) = [task for task in tasks if task.part == error.path]
                damaged.part.unlink()
                if damaged.span.name in self.by_data:
                    raise CheckpointError(
                        f"what was finished of {damaged.span.name} is damaged; the same command "
                        "makes it again, with all blocks that its own depends on"
                    ) from error
                palettize_tensor(damaged)
        self.place.put_shard(name, told)
        self._done(shard, told)

    def _done(self, shard: TensorFile, told: Mapping[str, Any]) -> None:
        self.told[shard.path.name] = told
        for task in self.tasks.get(shard.path.name, ()):
            task.part.unlink(missing_ok=True)

    def _reasons(self) -> dict[str, str]:
        plan, stored = self.planned.plan, self.planned.stored
        dense = {stored[item.name]: item.reason for item in plan.dense}
        return dense | {stored[item.name]: item.reason for item in plan.skipped}

    def _all_tasks(self) -> Iterator[Task]:
        for tasks in self.tasks.values():
            yield from tasks

    def _is_finished(self, task: Task) -> bool:
        return task.span.path.name in self.told or not self._is_missing(task)

    def _is_missing(self, task: Task) -> bool:
        return not task.part.is_file()

    def _check_finished_weights(self) -> None:
        """Compare weights with those that finished work was made of.

        Raises:
            CheckpointError: one is another.
        """
        for task in self._all_tasks():
            if not self._is_finished(task):
                continue
            shard = self.told.get(task.span.path.name)
            if shard is None:
                then = read_part(task).told["source_crc32"]
            else:
                then = shard["tensors"][task.span.name]["palettized"]["source_crc32"]
            if task.span.checksum() != then:
                raise CheckpointError(
                    f"{self.place.out} was begun with something else: {task.span.name} in "
                    f"{task.span.path} has other values now; put the source back as it was, or "
                    "name another folder"
                )


def _size(task: Task) -> int:
    return task.span.size // task.plan.dtype.itemsize


def _names(shards: Sequence[TensorFile]) -> dict[str, str]:
    """Return the names of files to write, by those of the source."""
    if len(shards) == 1:
        return {shards[0].path.name: SINGLE}
    stem = SINGLE.removesuffix(".safetensors")
    return {
        shard.path.name: f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        for number, shard in enumerate(shards, 1)
    }
