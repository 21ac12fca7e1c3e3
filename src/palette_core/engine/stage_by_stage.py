"""Through a model stage by stage: moments, clustering, and judging what came of it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from palette_core._common.progress import Advance
from palette_core.engine.cluster_tensor import without_moments
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered
from palette_core.statistics.activations import Compensation, Feeder
from palette_core.statistics.activations.structure import Step, Structure
from palette_core.statistics.activations.threads import CannotWait

_log = logging.getLogger(__name__)


def walk_through(
    jobs: Sequence[Job],
    feeder: Feeder,
    damping: Mapping[str, float | None],
    executor: Executor,
    advance: Advance,
) -> tuple[list[Clustered], dict[str, str]]:
    """Cluster every job with moments where its algorithm needs them.

    Args:
        jobs: what to cluster, without moments.
        feeder: the model and its batches.
        damping: of the weights that need moments, as a share of the mean diagonal; None is as
            much as `InputMoments.damping`.
        executor: who clusters.
        advance: called when a weight is done.

    Returns:
        results in the order of ``jobs``; and by name why a weight that needs moments had none.

    Raises:
        ClusteringError: an algorithm failed.
        CalibrationError: the model failed on a batch.
    """
    walk = _Walk(jobs, feeder, damping, executor, advance)
    with feeder:
        found = walk.sequentially() if feeder.calibration.sequential else walk.at_once()
    return [found[job.plan.name] for job in jobs], feeder.missing


class _Walk:
    """A walk through the model's weights, all at once or in the order of their use.

    Call `at_once` or `sequentially` once, inside ``with feeder:``.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        feeder: Feeder,
        damping: Mapping[str, float | None],
        executor: Executor,
        advance: Advance,
    ) -> None:
        self._jobs = {job.plan.name: job for job in jobs}
        self._feeder = feeder
        self._damping = damping
        self._executor = executor
        self._advance = advance
        self._results: dict[str, Clustered] = {}
        self._counted: set[str] = set()
        self._where = ""  # of the walk, for whoever watches

    def at_once(self) -> dict[str, Clustered]:
        """Cluster with the moments of the unchanged model."""
        judge = bool(self._feeder.calibration.held_out)
        structure = self._feeder.look() if judge else None
        known = self._feeder.findings.moments
        self._cluster([replace(job, moments=known.get(name)) for name, job in self._jobs.items()])
        for stage, steps in _by_stage(() if structure is None else structure.steps):
            # What is in no stage is judged one by one, by the model's output.
            each = [_names(steps)] if stage is not None else [[n] for n in _names(steps)]
            for names in each:
                self._judge(stage, names, alone=True)
            self._feeder.finish(stage)
        return self._results

    def sequentially(self) -> dict[str, Clustered]:
        """Cluster stage after stage, each fed by those before it as they have become."""
        try:
            return self._in_stages(self._feeder.start())
        except CannotWait:
            self._results.clear()
            return self._in_stages(self._feeder.start_over())

    def _in_stages(self, structure: Structure) -> dict[str, Clustered]:
        judge = bool(self._feeder.calibration.held_out)
        stages = list(_by_stage(structure.steps))
        for number, (stage, steps) in enumerate(stages, start=1):
            names = _names(steps)
            self._where = f"stage {number} of {len(stages)}, "
            _log.info("stage %s: %d weights", stage or names[0], len(names))
            self._feeder.enter(stage, names)
            for step in steps:
                self._step(step)
            changed = judge and self._judge(stage, names, alone=False)
            self._feeder.leave(stage, changed=changed)
        self._where = ""
        self._feeder.complete()
        rest = [job for name, job in self._jobs.items() if name not in structure.calls]
        for job in rest:
            if self._needs(job):
                self._feeder.missing.setdefault(job.plan.name, "no input came to it")
        self._cluster(rest)
        return self._results

    def _step(self, step: Step) -> None:
        """Cluster the weights of a step with the moments of the model as it is by now."""
        jobs = [self._jobs[name] for name in step.names]
        self._advance(f"{self._where}inputs of {step.names[0]}", 0)
        wanted = {job.plan.name: (job.plan, job.weight) for job in jobs if self._needs(job)}
        moments, gap_of = self._feeder.moments(step, wanted)
        ready, compensation = [], Compensation()
        for job in jobs:
            own = moments.get(job.plan.name)
            gap = None if own is None or own.is_diagonal else gap_of(job.plan.name)
            if own is not None and gap is not None:
                share = self._damping[job.plan.name]
                damping = own.damping() if share is None else share
                own = replace(own, target=compensation.target(job.weight, own, gap, damping))
            ready.append(replace(job, moments=own))
        self._cluster(ready)

    def _judge(self, stage: str | None, names: Sequence[str], *, alone: bool) -> bool:
        """Put plain k-means in the place of data-aware results that serve held-out batches less.

        Returns:
            whether it has.
        """
        catalog = self._executor.catalog
        jobs = [
            replace(job, plan=without_moments(job.plan, catalog), moments=None)
            for job in (self._jobs[name] for name in names if name in self._results)
            if self._needs(job)
        ]
        if not jobs:
            return False
        results = self._executor.run(jobs)
        plain = {job.plan.name: r for job, r in zip(jobs, results, strict=True)}
        with_plain = {name: r.palettized.decode() for name, r in plain.items()}
        with_aware = {name: self._feeder.decoded[name] for name in plain}
        error_plain, error_aware = self._feeder.errors(stage, (with_plain, with_aware), alone=alone)
        if error_plain < error_aware:
            self._results |= plain
            self._feeder.decoded |= with_plain
        return error_plain < error_aware

    def _needs(self, job: Job) -> bool:
        return job.plan.name in self._damping

    def _cluster(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self._advance(f"{self._where}{jobs[0].plan.name}", 0)
        results = self._executor.run(jobs, self._count)
        for job, result in zip(jobs, results, strict=True):
            self._results[job.plan.name] = result
            self._feeder.decoded[job.plan.name] = result.palettized.decode().to(job.weight.device)

    def _count(self, name: str, amount: int) -> None:
        """Count a weight as done, once, also where all begins anew."""
        if name not in self._counted:
            self._counted.add(name)
            self._advance(f"{self._where}{name}", amount)


def _by_stage(steps: Iterable[Step]) -> Iterator[tuple[str | None, list[Step]]]:
    """Yield what is palettized before the next is fed: a stage, or a step outside of stages."""
    for key, group in itertools.groupby(enumerate(steps), lambda s: s[1].stage or s[0]):
        yield key if isinstance(key, str) else None, [step for _, step in group]


def _names(steps: Iterable[Step]) -> list[str]:
    return [name for step in steps for name in step.names]
