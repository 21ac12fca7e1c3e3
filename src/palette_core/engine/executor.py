"""Place where clustering runs: in this process, on threads of it, or in joblib's workers."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch

from palette_core._common.progress import Advance
from palette_core._common.rng import untouched_global_rng
from palette_core._common.scratch import scratch_kept
from palette_core.engine.cluster_tensor import cluster_here
from palette_core.engine.jobs import Job
from palette_core.engine.kept import Keeper
from palette_core.engine.results import Clustered
from palette_core.engine.workers import (
    are_there,
    called_in_workers,
    in_workers,
    starts_processes,
)
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog, get_catalog

_log = logging.getLogger(__name__)

# Starting a worker process means importing torch: about two seconds, in which one core clusters
# tens of millions of scalars. Less work than this is over before a worker is up.
_WORTH_A_WORKER = 1 << 25
# Larger weights come one after the other, each worked on by all threads; smaller ones side by side.
_ALONE = 1 << 21
_FEWEST_TO_SHARE = 2


class HasPlan(Protocol):
    """Anything with the plan of a weight."""

    @property
    def plan(self) -> TensorPlan:
        """The plan."""


T = TypeVar("T")
ItemT = TypeVar("ItemT", bound=HasPlan)


def _nobody(name: str, count: float) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class Executor:
    """Runner of clustering jobs, with its plug-ins and who may watch. Results do not depend on it.

    Attributes:
        num_workers: 1 clusters in this process; more asks joblib, whose backend (loky processes
            by default) a surrounding ``joblib.parallel_config`` chooses.
        catalog: plug-ins for work in this process; workers discover their own.
        progress: None shows bars on a terminal.
        kept: what an earlier try has finished, and where to keep what this one does; None keeps
            nothing.

    Raises:
        TypeError: ``num_workers`` is not an integer.
        ValueError: it is less than 1.
    """

    num_workers: int = 1
    catalog: Catalog = field(default_factory=get_catalog)
    progress: bool | None = None
    kept: Keeper | None = None

    def __post_init__(self) -> None:
        count: object = self.num_workers
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"num_workers must be an integer, got {count!r}")
        if count < 1:
            raise ValueError(f"num_workers must be >= 1, got {count}")

    def run(self, jobs: Iterable[Job], advance: Advance = _nobody) -> list[Clustered]:
        """Cluster every job; results in the order of ``jobs``, the same for any ``num_workers``.

        Global random states are left as they are.

        Args:
            jobs: what to do.
            advance: called here with the name of a weight and 1 when it is done, in any order.

        Raises:
            PaletteError: the first failure, naming its tensor.
        """
        ordered = list(jobs)
        finished = self._kept(ordered)
        for i in finished:
            advance(ordered[i].plan.name, 1)
        # Largest first: the last worker to finish then has a small one.
        rest = [i for i in range(len(ordered)) if i not in finished]
        queue = sorted(rest, key=lambda i: -_cost(ordered[i]))
        try:
            with untouched_global_rng():
                for index, result in self._cluster(ordered, queue):
                    finished[index] = result
                    if self.kept is not None and self.kept.at_once:
                        self.kept.add([(ordered[index], result)])
                    _log.debug("%s: %.2f s", ordered[index].plan.name, result.seconds)
                    advance(ordered[index].plan.name, 1)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._keep(ordered, finished)
            raise
        if any(job.moments is not None for job in ordered):  # one call of several
            self._keep(ordered, finished)
        return [finished[i] for i in range(len(ordered))]

    def each(self, function: Callable[[ItemT], T], items: Iterable[ItemT]) -> Iterator[T]:
        """Call a function for the weight of every item; yields what it returns, in any order.

        Items are taken as they are needed, a few ahead, so that there may be any number of them.

        Args:
            function: of a module, where there are workers; it clusters.
            items: what to call it with, each with the plan of a weight on the CPU.

        Raises:
            PaletteError: the first failure.
        """
        if self.num_workers == 1 or not (starts_processes() or are_there()):
            yield from _each_in_this_process(function, items, self.catalog)
            return
        plans: list[TensorPlan] = []
        yield from called_in_workers(function, _noted(items, plans), self.num_workers, plans)

    def _cluster(self, jobs: list[Job], queue: list[int]) -> Iterable[tuple[int, Clustered]]:
        if self.num_workers == 1 or not _worth_workers([jobs[i] for i in queue]):
            return _in_this_process(jobs, queue, self.catalog)
        return in_workers(jobs, queue, self.num_workers)

    def _kept(self, jobs: list[Job]) -> dict[int, Clustered]:
        if not self.kept:  # there is none, or nothing in it
            return {}
        found = ((i, self.kept.find(job)) for i, job in enumerate(jobs))
        return {i: result for i, result in found if result is not None}

    def _keep(self, jobs: list[Job], finished: Mapping[int, Clustered]) -> None:
        if self.kept is not None:
            self.kept.add((jobs[i], result) for i, result in finished.items())


def _cost(job: Job) -> int:
    """Roughly proportional to the time that clustering takes."""
    if job.moments is not None and not job.moments.is_diagonal:
        # Every element of the weight meets a row of the matrix some tens of times.
        return job.weight.numel() * job.moments.hessian.shape[-1]
    vector = job.plan.spec.cluster_dim > 1
    return job.weight.numel() * (job.plan.spec.n_entries if vector else 1)


def _worth_workers(jobs: list[Job]) -> bool:
    if not starts_processes():
        return are_there()  # threads, or a cluster that is up already: the user has decided
    return len(jobs) > 1 and sum(_cost(job) for job in jobs) >= _WORTH_A_WORKER


def _in_this_process(
    jobs: list[Job], queue: list[int], catalog: Catalog
) -> Iterator[tuple[int, Clustered]]:
    """Cluster weights one by one, and those that threads may take side by side."""
    with scratch_kept():
        yield from _on_threads_of_it(jobs, queue, catalog)


def _on_threads_of_it(
    jobs: list[Job], queue: list[int], catalog: Catalog
) -> Iterator[tuple[int, Clustered]]:
    shared = dict.fromkeys(i for i in queue if _may_share(jobs[i], catalog))
    if len(shared) < _FEWEST_TO_SHARE or _threads() == 1:
        shared.clear()
    for i in queue:
        if i not in shared:
            yield i, cluster_here(jobs[i], catalog)
    if not shared:
        return
    from palette_core._common.threads import side_by_side  # numba loads slowly

    yield from side_by_side(lambda i: cluster_here(jobs[i], catalog), shared)


def _threads() -> int:
    from palette_core._common.threads import thread_count  # numba loads slowly

    return thread_count()


def _noted(items: Iterable[ItemT], plans: list[TensorPlan]) -> Iterator[tuple[ItemT]]:
    for item in items:
        plans.append(item.plan)
        yield (item,)


def _each_in_this_process(
    function: Callable[[ItemT], T], items: Iterable[ItemT], catalog: Catalog
) -> Iterator[T]:
    """Call for large weights one by one, and side by side for small ones that stand together."""
    from palette_core._common.threads import pool_of  # numba loads slowly

    ahead = 2 * torch.get_num_threads()
    pool = pool_of(ahead)
    running: deque[Future[T]] = deque()
    try:
        for item in items:
            if _is_small(item.plan) and _threads_may_share(item.plan, catalog):
                running.append(pool.submit(function, item))
                if len(running) >= ahead:
                    yield running.popleft().result()
                continue
            while running:
                yield running.popleft().result()
            yield function(item)
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _is_small(plan: TensorPlan) -> bool:
    return math.prod(plan.shape) <= _ALONE


def _may_share(job: Job, catalog: Catalog) -> bool:
    is_small = _is_small(job.plan) and job.weight.device.type == "cpu"
    return is_small and _threads_may_share(job.plan, catalog)


def _threads_may_share(plan: TensorPlan, catalog: Catalog) -> bool:
    """Return whether a weight may be clustered beside others, by plug-ins in several threads."""
    if (
        plan.lut_quantizer is not None
        and not catalog.lut_quantizers.get(plan.lut_quantizer).thread_safe
    ):
        return False
    return catalog.clusterers.get(plan.algorithm).thread_safe
