"""Through a model block by block: moments, clustering, and judging what came of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from palette_core.engine.cluster_tensor import Clustered, without_moments
from palette_core.engine.executor import Job, OnDone, run_jobs
from palette_core.errors import CalibrationError
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.clusterers import damping_of
from palette_core.statistics.activations import (
    Accumulator,
    CallKey,
    Findings,
    InputCalibration,
    Runner,
    Seen,
    Stop,
    compensated,
    copied,
    find_blocks,
    find_structure,
    moments_of,
)
from palette_core.statistics.activations.comparing import distance, has_values
from palette_core.statistics.activations.structure import Stage, Structure


class Walk:
    """A walk through the model's weights, all at once or in the order of their use.

    Call `at_once` or `sequentially` once, inside ``with walk.runner:``.

    Attributes:
        runner: of the model, on calibration batches and then the held-out ones.
        missing: by name, why a weight that needs moments has none.
    """

    def __init__(
        self,
        model: nn.Module,
        jobs: Sequence[Job],
        calibration: InputCalibration,
        findings: Findings,
        num_workers: int,
        catalog: Catalog,
        on_done: OnDone | None,
    ) -> None:
        plans = [job.plan for job in jobs]
        self._jobs = {job.plan.name: job for job in jobs}
        self._calibration = calibration
        self._findings = findings
        self._workers = num_workers
        self._catalog = catalog
        self._on_done = on_done
        self._n = len(calibration.batches)
        self._blocks = find_blocks(model, plans, calibration.blocks)
        batches = (*calibration.batches, *calibration.held_out)
        self.runner = Runner(model, plans, batches, self._blocks, self._n)
        self._decoded: dict[str, Tensor] = {}
        self._results: dict[str, Clustered] = {}
        # Outputs of finished blocks by batch: of the unchanged model, and as it is by now.
        self._first: list[dict[str, Any]] = [{} for _ in batches]
        self._now: list[dict[str, Any]] = [{} for _ in batches]
        self.missing: dict[str, str] = dict(findings.missing)

    # --- all at once ----------------------------------------------------------------------------

    def at_once(self) -> dict[str, Clustered]:
        """Cluster with the moments of the unchanged model."""
        known = self._findings.moments
        n, end = self._n, len(self.runner.batches)
        judged = self._structure(range(n, end)) if n < end else None
        self._cluster([replace(job, moments=known.get(name)) for name, job in self._jobs.items()])
        if judged is not None:
            for block, stages in _by_block(judged.stages):
                # What is in no block is judged one by one, by the model's output.
                each = [_names(stages)] if block is not None else [[n] for n in _names(stages)]
                for names in each:
                    self._judge(block, names, {}, self._first)
                self._finish(block, judged)
        return self._results

    # --- block after block ----------------------------------------------------------------------

    def sequentially(self) -> dict[str, Clustered]:
        """Cluster block after block, each fed by those before it as they have become."""
        compensate, judge = self._calibration.compensate, bool(self._calibration.held_out)
        structure = self._structure(range(len(self.runner.batches)))
        for block, stages in _by_block(structure.stages):
            names = _names(stages)
            before = self._inputs_before(block, names, structure) if compensate else None
            for stage in stages:
                self._stage(stage, before, structure)
            if judge:
                self._judge(block, names, self._decoded, self._now)
            self._finish(block, structure)
            if block is not None:
                self._keep_outputs(block)
        rest = [job for name, job in self._jobs.items() if name not in structure.calls]
        for job in rest:
            if self._needs(job.plan):
                self.missing.setdefault(job.plan.name, "no input came to it")
        self._cluster(rest)
        return self._results

    def _structure(self, batches: Iterable[int]) -> Structure:
        """Return what the unchanged model does on some batches.

        Raises:
            CalibrationError: it fails on one, or gives nothing to judge by on a held-out one.
        """
        keep = self._calibration.compensate or bool(self._calibration.held_out)
        return find_structure(self.runner, batches, keep=keep, check=self._check_held_out)

    def _check_held_out(self, batch: int, output: Any) -> None:
        if batch >= self._n and not has_values(output):
            raise CalibrationError(
                f"nothing can be judged by {self.runner.label(batch)}: what the unchanged model "
                "returns on it is empty, or NaN or infinite throughout"
            )

    def _finish(self, block: str | None, structure: Structure) -> None:
        """Let a block of the unchanged model answer from memory from now on."""
        for batch, outputs in structure.outputs.items():
            if block is not None and block in outputs:
                self._first[batch][block] = outputs[block]

    def _inputs_before(
        self, block: str | None, names: Sequence[str], structure: Structure
    ) -> dict[CallKey, tuple[Tensor, ...]]:
        """Return what the unchanged model multiplies some weights with."""
        found: dict[CallKey, tuple[Tensor, ...]] = {}
        for batch in range(self._n):
            copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

            def copy(x: Tensor, copies: dict[Any, Any] = copies) -> Tensor:
                key = (id(x), x._version)
                if key not in copies:
                    copies[key] = (x, x.detach().clone())
                return copies[key][1]  # type: ignore[no-any-return]

            def see(
                seen: Seen, batch: int = batch, copy: Callable[[Tensor], Tensor] = copy
            ) -> None:
                if seen.what is not None:
                    key = (seen.name, batch, seen.call)
                    found[key] = tuple(copy(x) for x in seen.what.raw)

            self.runner.run(
                batch,
                structure.until(names, see),
                answers=self._first[batch],
                keep=_stop_after(block),
            )
        return found

    def _stage(
        self,
        stage: Stage,
        before: Mapping[CallKey, tuple[Tensor, ...]] | None,
        structure: Structure,
    ) -> None:
        sums = Accumulator(self._calibration.folder)
        reasons: dict[str, str] = {}
        wanted = [name for name in stage.names if self._needs(self._jobs[name].plan)]
        weights = self._findings.weights or {}

        for batch in range(self._n) if wanted else ():

            def see(seen: Seen, batch: int = batch) -> None:
                key = (seen.name, batch, seen.call)
                if seen.what is None:
                    reasons[seen.name] = f"the inputs of {seen.op_type!r} are not understood"
                elif seen.name in wanted:
                    earlier = None if before is None else before.get(key)
                    if earlier is not None and not _alike(earlier, seen.what.raw):
                        earlier = None
                    # Palettized blocks before it may send it other inputs, or more of them.
                    same = structure.shapes.get(key) == tuple(x.shape for x in seen.what.raw)
                    sums.add(seen.name, seen.what, weights.get(key) if same else None, earlier)

            self.runner.run(
                batch,
                structure.until(stage.names, see),
                weights=self._decoded,
                answers=self._now[batch],
                keep=_stop_after(stage.block),
            )
            sums.forget_inputs()
        plans = [self._jobs[name].plan for name in wanted]
        moments, missing = moments_of(plans, sums, reasons)
        self.missing |= missing
        jobs = []
        for name in stage.names:
            job, own = self._jobs[name], moments.get(name)
            cross = sums.cross(name)
            if own is not None and cross is not None and not own.is_diagonal:
                item = self._catalog.clusterers.find(job.plan.algorithm)
                damping = damping_of(item, job.plan.algorithm_options, own, name)
                own = replace(own, target=compensated(job.weight, own, cross, damping))
            jobs.append(replace(job, moments=own))
        self._cluster(jobs)

    def _keep_outputs(self, block: str) -> None:
        """Run a palettized block on every batch and keep what it returns."""
        for batch, known in enumerate(self._now):
            ran, output = self._output(block, batch, known, self._decoded)
            if ran:
                known[block] = output

    def _output(
        self, block: str | None, batch: int, answers: Mapping[str, Any], weights: Mapping[str, Any]
    ) -> tuple[bool, Any]:
        """Return what a block returns; where it is None, or does not run, what the model does."""
        kept: list[Any] = []

        def keep(name: str, output: Any) -> None:
            if name == block:
                kept.append(copied(output))
                raise Stop

        whole = self.runner.run(
            batch, weights=weights, answers=answers, keep=None if block is None else keep
        )
        return (True, kept[0]) if kept else (False, whole)

    # --- judging --------------------------------------------------------------------------------

    def _judge(
        self,
        block: str | None,
        names: Sequence[str],
        others: Mapping[str, Tensor],
        answers: Sequence[Mapping[str, Any]],
    ) -> None:
        """Put plain k-means in the place of data-aware results that serve held-out batches less."""
        aware = [name for name in names if self._needs(self._jobs[name].plan)]
        jobs = [
            replace(
                self._jobs[name],
                plan=without_moments(self._jobs[name].plan, self._catalog),
                moments=None,
            )
            for name in aware
            if name in self._results
        ]
        if not jobs:
            return
        results = run_jobs(jobs, num_workers=self._workers, catalog=self._catalog)
        plain = {job.plan.name: r for job, r in zip(jobs, results, strict=True)}
        others = {name: w for name, w in others.items() if name not in plain}
        with_plain = {**others, **{n: r.palettized.decode() for n, r in plain.items()}}
        with_aware = {**others, **{n: self._decoded[n] for n in plain}}
        error_plain = error_aware = 0.0
        for batch in range(self._n, len(self.runner.batches)):
            plain_error, aware_error = self._errors(block, batch, answers, with_plain, with_aware)
            error_plain += plain_error
            error_aware += aware_error
        if error_plain < error_aware:
            for name, result in plain.items():
                self._results[name] = result
                self._decoded[name] = with_plain[name]

    def _errors(
        self,
        block: str | None,
        batch: int,
        answers: Sequence[Mapping[str, Any]],
        *weights: Mapping[str, Tensor],
    ) -> list[float]:
        """Return how far a block's outputs are from the unchanged model's, by weights."""
        ran, truth = self._output(block, batch, self._first[batch], {})
        others = [self._output(block, batch, answers[batch], w) for w in weights]
        if any(also != ran for also, _ in others):
            # Its weights decide whether it runs: only the model's own outputs can be compared.
            return self._errors(None, batch, answers, *weights)
        if not has_values(truth):
            raise CalibrationError(
                f"{block or 'the model'} cannot be judged by {self.runner.label(batch)}: what "
                "the unchanged one returns on it is empty, or NaN or infinite throughout"
            )
        return [distance(truth, other) for _, other in others]

    # --- clustering -----------------------------------------------------------------------------

    def _needs(self, plan: TensorPlan) -> bool:
        return self._catalog.clusterers.get(plan.algorithm).needs_moments

    def _cluster(self, jobs: Sequence[Job]) -> None:
        results = run_jobs(
            jobs, num_workers=self._workers, catalog=self._catalog, on_done=self._on_done
        )
        for job, result in zip(jobs, results, strict=True):
            self._results[job.plan.name] = result
            self._decoded[job.plan.name] = result.palettized.decode().to(job.weight.device)


def _stop_after(block: str | None) -> Callable[[str, Any], None] | None:
    def stop(name: str, output: Any) -> None:
        del output
        if name == block:
            raise Stop

    return None if block is None else stop


def _by_block(stages: Iterable[Stage]) -> Iterator[tuple[str | None, list[Stage]]]:
    """Yield what is palettized before the next is fed: a block, or a stage outside of blocks."""
    for key, group in itertools.groupby(enumerate(stages), lambda s: s[1].block or s[0]):
        yield key if isinstance(key, str) else None, [stage for _, stage in group]


def _names(stages: Iterable[Stage]) -> list[str]:
    return [name for stage in stages for name in stage.names]


def _alike(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape for x, y in zip(a, b, strict=True))
