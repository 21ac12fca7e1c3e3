"""Through a model block by block: moments, clustering, and judging what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from palette_core.cluster_tensor import Clustered, without_moments
from palette_core.execution import Job, OnDone, run_jobs
from palette_core.moments import (
    Accumulator,
    CallKey,
    Findings,
    InputCalibration,
    Runner,
    Seen,
    Stop,
    block_of,
    compensated,
    copied,
    find_blocks,
    moments_of,
)
from palette_core.planning import TensorPlan
from palette_core.plugins import Catalog


@dataclass(frozen=True)
class _Stage:
    """Weights that are palettized together: of one block, with one input."""

    block: str | None
    names: tuple[str, ...]


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
        self.runner = Runner(model, plans, batches, self._blocks)
        self._calls: dict[str, int] = {}
        self._once: set[str] = set()
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
        jobs = [replace(job, moments=known.get(name)) for name, job in self._jobs.items()]
        for job in jobs:
            if job.moments is None and self._needs(job.plan):
                self.missing.setdefault(job.plan.name, "it was not calibrated")
        self._cluster(jobs)
        if self._calibration.held_out:
            for block, names in self._by_block():
                self._judge(block, names, {}, self._first)
                self._keep_outputs(block, self._first, {})
        return self._results

    # --- block after block ----------------------------------------------------------------------

    def sequentially(self) -> dict[str, Clustered]:
        """Cluster block after block, each fed by those before it as they have become."""
        stages = self._stages()
        seen = {name for stage in stages for name in stage.names}
        at = 0
        while at < len(stages):
            block = stages[at].block
            end = at + 1
            while end < len(stages) and block is not None and stages[end].block == block:
                end += 1
            group = stages[at:end]
            names = [name for stage in group for name in stage.names]
            before = self._inputs_before(names) if self._calibration.compensate else None
            for stage in group:
                self._stage(stage, before)
            if self._calibration.held_out:
                self._judge(block, names, self._decoded, self._now)
            if self._calibration.compensate or self._calibration.held_out:
                self._keep_outputs(block, self._first, {})
            self._keep_outputs(block, self._now, self._decoded)
            at = end
        rest = [job for name, job in self._jobs.items() if name not in seen]
        for job in rest:
            if self._needs(job.plan):
                self.missing.setdefault(job.plan.name, "no input came to it")
        self._cluster(rest)
        return self._results

    def _stages(self) -> list[_Stage]:
        """Run one batch and return what is consumed in which order."""
        order: dict[str, tuple[Any, ...]] = {}
        held: list[Any] = []
        runs: dict[str, int] = {}

        def see(seen: Seen) -> None:
            self._calls[seen.name] = self._calls.get(seen.name, 0) + 1
            raw = () if seen.what is None else seen.what.raw
            held.append(raw)
            order.setdefault(seen.name, tuple(id(x) for x in raw))

        def keep(name: str, output: Any) -> None:
            del output
            runs[name] = runs.get(name, 0) + 1

        self.runner.run(0, see, keep=keep)
        # A block that runs twice may depend on what comes between: it never answers from memory.
        self._once = {name for name, count in runs.items() if count == 1}
        stages: list[_Stage] = []
        last: tuple[Any, ...] | None = None
        for name, raw in order.items():
            block = block_of(self._jobs[name].plan.owners[0].module, list(self._blocks))
            block = block if block in self._once else None
            if stages and raw and raw == last and stages[-1].block == block:
                stages[-1] = replace(stages[-1], names=(*stages[-1].names, name))
            else:
                stages.append(_Stage(block, (name,)))
            last = raw
        return stages

    def _inputs_before(self, names: Sequence[str]) -> dict[CallKey, tuple[Tensor, ...]]:
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

            see_all = _until(self._calls, names, see)
            self.runner.run(batch, see_all, answers=self._first[batch])
        return found

    def _stage(self, stage: _Stage, before: Mapping[CallKey, tuple[Tensor, ...]] | None) -> None:
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
                    sums.add(seen.name, seen.what, weights.get(key), earlier)

            self.runner.run(
                batch,
                _until(self._calls, stage.names, see),
                weights=self._decoded,
                answers=self._now[batch],
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
                given = job.plan.algorithm_options.get("damping")
                damping = own.damping() if given is None else float(given)
                own = replace(own, target=compensated(job.weight, own, cross, damping))
            jobs.append(replace(job, moments=own))
        self._cluster(jobs)

    def _keep_outputs(
        self, block: str | None, answers: list[dict[str, Any]], weights: Mapping[str, Tensor]
    ) -> None:
        """Run a block on every batch and keep what it returns."""
        if block is None or block not in self._once:
            return
        for batch, known in enumerate(answers):
            known[block] = self._output(block, batch, known, weights)

    def _output(
        self, block: str | None, batch: int, answers: Mapping[str, Any], weights: Mapping[str, Any]
    ) -> Any:
        """Return what a block, or the model where it is None, returns."""
        kept: list[Any] = []

        def keep(name: str, output: Any) -> None:
            if name == block:
                kept.append(copied(output))
                raise Stop

        whole = self.runner.run(
            batch, weights=weights, answers=answers, keep=None if block is None else keep
        )
        return kept[0] if kept else whole

    # --- judging --------------------------------------------------------------------------------

    def _by_block(self) -> list[tuple[str | None, list[str]]]:
        found: dict[str | None, list[str]] = {}
        for stage in self._stages():
            found.setdefault(stage.block, []).extend(stage.names)
        # What is in no block is judged one by one, by the model's output.
        loose = [(None, [name]) for name in found.pop(None, [])]
        return [*found.items(), *loose]

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
            replace(self._jobs[name], plan=without_moments(self._jobs[name].plan), moments=None)
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
            truth = self._output(block, batch, self._first[batch], {})
            error_plain += _distance(truth, self._output(block, batch, answers[batch], with_plain))
            error_aware += _distance(truth, self._output(block, batch, answers[batch], with_aware))
        if error_plain < error_aware:
            for name, result in plain.items():
                self._results[name] = result
                self._decoded[name] = with_plain[name]

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


def _until(
    calls: Mapping[str, int], names: Sequence[str], see: Callable[[Seen], None]
) -> Callable[[Seen], None]:
    """Return a callback for some weights that ends the run after the last of their calls."""
    left = sum(calls.get(name, 0) for name in names)

    def counting(seen: Seen) -> None:
        nonlocal left
        if seen.name not in names:
            return
        see(seen)
        left -= 1
        if left == 0:
            raise Stop

    return counting


def _alike(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape for x, y in zip(a, b, strict=True))


def _distance(truth: Any, other: Any) -> float:
    """Return Σ (a − b)² over floating outputs, each relative to its own Σ a²; NaN is infinite."""
    total = 0.0
    for a, b in zip(tree_leaves(truth), tree_leaves(other), strict=True):
        if isinstance(a, Tensor) and a.is_floating_point():
            size = float(a.double().square().sum()) or 1.0
            error = float((a.double() - b.double()).square().sum()) / size
            total += float("inf") if math.isnan(error) else error
    return total
