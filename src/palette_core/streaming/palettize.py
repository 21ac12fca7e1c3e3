"""A dense checkpoint in, a palettized one out: tensor by tensor, and on from where it stopped."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palette_core._common.progress import Advance, progress_bar
from palette_core._common.rng import untouched_global_rng
from palette_core._common.warned import warn
from palette_core.config import KMeansPalettizerConfig
from palette_core.config.model import ConfigLike
from palette_core.engine.cluster_model import fallback_sentences
from palette_core.engine.executor import Executor
from palette_core.engine.results import Report, TensorReport
from palette_core.errors import CheckpointError, PlanError, WorkerError
from palette_core.planning.make import OnIncompatible
from palette_core.plugins.catalog import get_catalog
from palette_core.storage.checkpoint_folders import SINGLE
from palette_core.storage.span_writing import DamagedPieceError
from palette_core.storage.tensor_spans import TensorFile
from palette_core.streaming.beside import write_beside
from palette_core.streaming.job import Sealed, identity
from palette_core.streaming.parts import Task, palettize_tensor, read_part
from palette_core.streaming.planning import CheckpointPlan, plan_source
from palette_core.streaming.shards import assemble
from palette_core.streaming.source import SourceCheckpoint, open_source
from palette_core.streaming.workplace import Workplace, alone_in_folder

_PATIENCE = 2  # times that workers may be killed without one weight more being finished
_FULL = (errno.ENOSPC, errno.EDQUOT)


def palettize_checkpoint(
    src: str | Path,
    config: ConfigLike,
    out: str | Path,
    *,
    on_incompatible: OnIncompatible = "skip",
    num_workers: int = 1,
    progress: bool | None = None,
) -> Report:
    """Palettize a checkpoint of safetensors files into a folder, without building a model.

    Weights are read from memory-mapped files and clustered one by one (by each worker), so memory
    does not grow with the checkpoint. What is finished is kept in the folder: after a kill or an
    error the same call goes on from there, and writes the same files byte for byte.

    Args:
        src: a folder with one safetensors file or an index of several, as Hugging Face's
            libraries write it; or the index, or the file.
        config: the rules, see `plan_checkpoint`; None is 4 bits per tensor.
        out: folder to write: packed checkpoints for the shards of the source, their index, a
            manifest, and what lies beside the weights in the folder of the source, such as
            ``config.json`` and the tokenizer. New, empty, or of an earlier try.
        on_incompatible: what to do with a weight whose shape does not fit its spec; see
            `KMeansPalettizer.make_plan`.
        num_workers: how many weights to cluster at a time: 1 in this process, more in workers of
            joblib, whose backend a surrounding ``joblib.parallel_config`` chooses; all of them
            see the files of ``src`` and ``out`` under the same names.
        progress: None shows a bar on a terminal.

    Raises:
        FileNotFoundError: there is no checkpoint, or a file of it is missing.
        CheckpointError: it is not clear which files are meant, one is no whole safetensors file,
            two hold a tensor of one name, the weights are quantized already; or ``out`` holds
            something else, was begun with another source or config, or another run writes in it.
        PlanError: nothing is to be palettized, or a weight cannot be stored as the config asks.
        WeightError: a weight is NaN or infinite.
        WorkerError: workers were killed again and again.
        OSError: a file cannot be read, or written: the disk is full.
    """
    config = KMeansPalettizerConfig.of(config).checked_copy()
    executor, out = Executor(num_workers, progress=progress), Path(out)
    source = open_source(src)
    planned = plan_source(source, config, executor.catalog, on_incompatible)
    _check(source, planned)
    with alone_in_folder(out, source):
        about = identity(source, config, planned, executor.catalog)
        seconds: dict[str, float] = {}
        try:
            place = Workplace(out, source, about)
            if place.finished is None:
                seconds = _Run(source, planned, config, place, executor).finish(about)
        except OSError as error:
            if error.errno in _FULL:
                raise OSError(
                    error.errno,
                    f"{error.strerror}; what is finished is kept in {out}, and the same command "
                    "goes on from there",
                    error.filename or str(out),
                ) from error
            raise
        assert place.finished is not None
        return _report(planned, place.finished, seconds)


def _check(source: SourceCheckpoint, planned: CheckpointPlan) -> None:
    plan = planned.plan
    if not plan.tensors:
        raise PlanError(f"{source.path}: {' '.join(plan.warnings)}; nothing is written")
    names = planned.by_stored_name()
    for span in source.spans():
        if span.name.rpartition(".")[0] in names:
            raise CheckpointError(
                f"{span.path}: {span.name} has a name as parts of the palettized "
                f"{span.name.rpartition('.')[0]} have; leave that dense, or rename one"
            )
    catalog = get_catalog()
    needy = [item.name for item in plan if catalog.clusterers.get(item.algorithm).needs_moments]
    missing = dict.fromkeys(needy, "a checkpoint without its model gives none")
    warn(*plan.warnings, *fallback_sentences(missing), stacklevel=3)


def _report(planned: CheckpointPlan, manifest: Sealed, seconds: Mapping[str, float]) -> Report:
    rows = []
    for name in planned.by_stored_name():
        told = manifest.value["tensors"][name]["palettized"]
        rows.append(TensorReport.from_dict({**told, "seconds": seconds.get(name, 0.0)}))
    return Report(tuple(rows), planned.plan.skipped, planned.plan.coverage)


@dataclass
class _Run:
    """Work of one checkpoint, shard by shard."""

    source: SourceCheckpoint
    planned: CheckpointPlan
    config: KMeansPalettizerConfig
    place: Workplace
    executor: Executor
    tasks: dict[str, list[Task]] = field(default_factory=dict)
    told: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plans = self.planned.by_stored_name()
        for number, span in enumerate(self.source.spans()):
            tasks = self.tasks.setdefault(span.path.name, [])
            if span.name in plans:
                tasks.append(Task(plans[span.name], span, self.place.part(number)))

    def finish(self, about: Mapping[str, Any]) -> dict[str, float]:
        """Do all that is left; returns the seconds that each weight took, by name."""
        names = _names(self.source.shards)
        for shard in self.source.shards:
            found = self.place.shard(names[shard.path.name])
            if found is not None:
                self._done(shard, found)
        if not self.place.is_surely_same:
            self._check_finished_weights()
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
