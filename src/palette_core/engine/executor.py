"""Place where clustering runs: in this process, on threads of it, or in joblib's workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor

from palette_core._common.progress import Advance
from palette_core.engine.cluster_tensor import cluster_tensor
from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered
from palette_core.errors import ClusteringError, PaletteError
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import Catalog, get_catalog
from palette_core.tensors.moments import InputMoments
from palette_core.tensors.sensitivities import Sensitivity

# Starting a worker process means importing torch: about two seconds, in which one core clusters
# tens of millions of scalars. Less work than this is over before a worker is up.
_WORTH_A_WORKER = 1 << 25
# Larger weights come one after the other, each worked on by all threads; smaller ones side by side.
_ALONE = 1 << 21
_FEWEST_TO_SHARE = 2


@dataclass(frozen=True)
class Executor:
    """Runner of clustering jobs, with its plug-ins and who may watch. Results do not depend on it.

    Attributes:
        num_workers: 1 clusters in this process; more asks joblib, whose backend (loky processes
            by default) a surrounding ``joblib.parallel_config`` chooses.
        catalog: plug-ins for work in this process; workers discover their own.
        progress: None shows bars on a terminal.

    Raises:
        TypeError: ``num_workers`` is not an integer.
        ValueError: it is less than 1.
    """

    num_workers: int = 1
    catalog: Catalog = field(default_factory=get_catalog)
    progress: bool | None = None

    def __post_init__(self) -> None:
        count: object = self.num_workers
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"num_workers must be an integer, got {count!r}")
        if count < 1:
            raise ValueError(f"num_workers must be >= 1, got {count}")

    def run(self, jobs: Iterable[Job], advance: Advance | None = None) -> list[Clustered]:
        """Cluster every job; results in the order of ``jobs``, the same for any ``num_workers``.

        Args:
            jobs: what to do.
            advance: called here with the name of a weight and 1 when it is done, in any order.

        Raises:
            PaletteError: the first failure, naming its tensor.
        """
        ordered = list(jobs)
        results: list[Clustered | None] = [None] * len(ordered)
        # Largest first: the last worker to finish then has a small one.
        queue = sorted(range(len(ordered)), key=lambda i: -_cost(ordered[i]))
        done: Iterable[tuple[int, Clustered]]
        if self.num_workers == 1 or not _worth_workers(ordered):
            done = _in_this_process(ordered, queue, self.catalog)
        else:
            done = _in_workers(ordered, queue, self.num_workers)
        for index, result in done:
            results[index] = result
            if advance is not None:
                advance(ordered[index].plan.name, 1)
        return [result for result in results if result is not None]


def _cost(job: Job) -> int:
    """Roughly proportional to the time that clustering takes."""
    if job.moments is not None and not job.moments.is_diagonal:
        # Every element of the weight meets a row of the matrix some tens of times.
        return job.weight.numel() * job.moments.hessian.shape[-1]
    vector = job.plan.spec.cluster_dim > 1
    return job.weight.numel() * (job.plan.spec.n_entries if vector else 1)


def _worth_workers(jobs: list[Job]) -> bool:
    from joblib.parallel import get_active_backend

    chosen = get_active_backend()[0]
    if type(chosen).__name__ not in ("LokyBackend", "MultiprocessingBackend"):
        return True  # threads, or a cluster that is up already: the user has decided
    return len(jobs) > 1 and sum(_cost(job) for job in jobs) >= _WORTH_A_WORKER


def _in_this_process(
    jobs: list[Job], queue: list[int], catalog: Catalog
) -> Iterator[tuple[int, Clustered]]:
    """Cluster weights one by one, and those that threads may take side by side."""
    shared = [i for i in queue if _may_share(jobs[i], catalog)]
    if len(shared) < _FEWEST_TO_SHARE:
        shared = []
    for i in queue:
        if i not in shared:
            yield i, _here(jobs[i], catalog)
    if not shared:
        return
    from palette_core._common.threads import pool_of  # numba loads slowly

    pool = pool_of(len(shared))
    try:
        running = {pool.submit(_here, jobs[i], catalog): i for i in shared}
        for future in as_completed(running):
            yield running[future], future.result()
    finally:
        # After an error or Ctrl-C what has begun ends, and the rest does not begin.
        pool.shutdown(cancel_futures=True)


def _may_share(job: Job, catalog: Catalog) -> bool:
    plan = job.plan
    if job.weight.numel() > _ALONE or job.weight.device.type != "cpu":
        return False
    if (
        plan.lut_quantizer is not None
        and not catalog.lut_quantizers.get(plan.lut_quantizer).thread_safe
    ):
        return False
    return catalog.clusterers.get(plan.algorithm).thread_safe


def _here(job: Job, catalog: Catalog) -> Clustered:
    try:
        return cluster_tensor(job, catalog)
    except (PaletteError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ClusteringError(f"{job.plan.name}: {type(error).__name__}: {error}") from error


def _in_workers(
    jobs: list[Job], queue: list[int], num_workers: int
) -> Iterable[tuple[int, Clustered]]:
    parallel = joblib.Parallel(n_jobs=num_workers, return_as="generator_unordered")
    shared: dict[int, np.ndarray[Any, Any]] = {}
    calls = (
        joblib.delayed(_work)(
            i,
            jobs[i].plan,
            *_to_numpy(jobs[i].weight),
            _numpy(jobs[i].importance),
            _sent(jobs[i].moments, shared),
        )
        for i in queue
    )
    for index, result in parallel(calls):
        device = jobs[index].weight.device
        yield index, replace(result, palettized=result.palettized.to(device))


def _numpy(tensor: Tensor | None) -> np.ndarray[Any, Any] | None:
    return None if tensor is None else tensor.detach().cpu().to(torch.float32).numpy()


@dataclass(frozen=True)
class _Sent:
    """Moments on their way: joblib maps large arrays into workers, one object once."""

    rest: InputMoments
    hessian: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any] | None


def _sent(moments: InputMoments | None, shared: dict[int, np.ndarray[Any, Any]]) -> _Sent | None:
    """Take the large arrays out of moments; layers that share a matrix send the same object."""
    if moments is None:
        return None
    matrix = moments.hessian
    array = shared.setdefault(matrix.data_ptr(), matrix.detach().cpu().contiguous().numpy())
    target = None if moments.target is None else moments.target.detach().cpu().double().numpy()
    return _Sent(replace(moments, hessian=matrix.new_empty(0), target=None), array, target)


def _received(sent: _Sent | None) -> InputMoments | None:
    if sent is None:
        return None
    target = None if sent.target is None else _tensor(sent.target)
    return replace(sent.rest, hessian=_tensor(sent.hessian), target=target)


def _to_numpy(weight: Tensor) -> tuple[np.ndarray[Any, Any], torch.dtype]:
    """Return the weight's bytes as an array: joblib maps arrays into workers without copies."""
    host = weight.detach().cpu().contiguous()
    if host.dtype is torch.bfloat16:
        return host.view(torch.int16).numpy(), host.dtype
    return host.numpy(), host.dtype


def _work(
    index: int,
    plan: TensorPlan,
    array: np.ndarray[Any, Any],
    dtype: torch.dtype,
    importance: np.ndarray[Any, Any] | None,
    moments: _Sent | None,
) -> tuple[int, Clustered]:
    weight = _tensor(array).view(dtype)
    sensitivity = None if importance is None else Sensitivity(_tensor(importance), "")
    job = Job(plan, weight, sensitivity, _received(moments))
    return index, _here(job, get_catalog())


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Wrap an array, possibly a read-only memory map; clusterers do not write to their input."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
