"""Clustering in joblib's workers: what is sent to them, and what their failures are called."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from typing import Any, NoReturn

import joblib
import numpy as np
import torch
from joblib.parallel import get_active_backend
from torch import Tensor

from palette_core._common.pytrees import exchanged
from palette_core.engine.cluster_tensor import cluster_here
from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered
from palette_core.errors import PaletteError, WorkerError, named_text_of, shortened
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import get_catalog

_ALONE = "num_workers=1 clusters in this process"
_RETRY = "what is finished is kept by the palettizer, so that preparing again takes up from there"


def starts_processes() -> bool:
    """Return whether workers are yet to be started, which takes seconds.

    Raises:
        WorkerError: the backend that joblib is told to use cannot be worked with.
    """
    backend = get_active_backend()[0]
    name = type(backend).__name__
    if name != "SequentialBackend" and not backend.supports_return_generator:
        raise WorkerError(
            f"joblib's {name} does not return results as they come, and forks this process, whose "
            f"threads do not live on in the copies; use 'loky', 'threading' or 'dask' in "
            f"joblib.parallel_config, or {_ALONE}"
        )
    return name == "LokyBackend"


def are_there() -> bool:
    """Return whether there are any workers to be had."""
    return type(get_active_backend()[0]).__name__ != "SequentialBackend"


def in_workers(
    jobs: Sequence[Job], queue: Sequence[int], num_workers: int
) -> Iterator[tuple[int, Clustered]]:
    """Cluster jobs in workers; yields each with its place in ``jobs``, in the order they are done.

    Args:
        jobs: the weights.
        queue: which of them, the first to be begun first.
        num_workers: how many work at a time.

    Raises:
        PaletteError: the first failure, naming its tensor.
        WorkerError: a worker was killed or cannot be reached, or a job cannot be sent to one.
    """
    shared: dict[Any, np.ndarray[Any, Any]] = {}
    calls = (
        joblib.delayed(_work)(i, exchanged(lambda part: _Sent(part, shared), jobs[i]))
        for i in queue
    )
    try:
        parallel = joblib.Parallel(n_jobs=num_workers, return_as="generator_unordered")
        for index, result in parallel(calls):
            device = jobs[index].weight.device
            yield index, replace(result, palettized=result.palettized.to(device))
    except (PaletteError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:  # each backend has exceptions of its own
        if not isinstance(error, Exception) and not _named(error, "CancelledError"):
            raise
        _explain(error, [jobs[i].plan for i in queue])


def _explain(error: BaseException, plans: Sequence[TensorPlan]) -> NoReturn:
    what = shortened(named_text_of(error).partition("\n")[0])
    if isinstance(error, BrokenExecutor) or _named(error, "KilledWorker"):
        raise WorkerError(
            "a worker process ended before it was done, most often because the system was out of "
            f"memory and killed it ({what}); fewer workers need less memory, {_ALONE}; {_RETRY}"
        ) from error
    if _named(error, "CancelledError"):
        raise WorkerError(
            "work was cancelled, by a worker or a cluster that went away; see that it is up, or "
            f"{_ALONE}; {_RETRY}"
        ) from error
    if isinstance(error, pickle.PicklingError) or "pickle" in what:
        raise WorkerError(
            f"{_unsendable(plans)} cannot be pickled, as what goes to a worker process must "
            f"be ({what}); {_ALONE}, and joblib.parallel_config(backend='threading') in threads"
        ) from error
    raise WorkerError(f"workers failed: {what}; {_ALONE}; {_RETRY}") from error


def _named(error: BaseException, *names: str) -> bool:
    """Return whether an error is of a class of one of these names, from whichever library."""
    return any(cls.__name__ in names for cls in type(error).__mro__)


def _unsendable(plans: Sequence[TensorPlan]) -> str:
    """Return what does not pickle, in words."""
    for plan in plans:
        try:
            pickle.dumps(plan)
        except Exception:
            return f"{plan.name}: an option of algorithm {plan.algorithm!r} or of its spec"
    return "what a plug-in takes or returns"


# --- what is sent ---------------------------------------------------------------------------------


class _Sent:
    """A tensor on its way: joblib maps large arrays into workers, one object once.

    Args:
        tensor: of any device.
        shared: arrays by what is in them, for layers that share a matrix to send the same object.
    """

    def __init__(self, tensor: Tensor, shared: dict[Any, np.ndarray[Any, Any]]) -> None:
        self.dtype = tensor.dtype
        host = tensor.detach().cpu().contiguous()
        raw = host.view(torch.int16) if self.dtype is torch.bfloat16 else host
        # As long as a job lives, so does its tensor, and no other has the place in memory.
        key = tensor.data_ptr(), tensor.shape, tensor.stride(), self.dtype
        self.array = shared.setdefault(key, raw.numpy())

    def received(self) -> Tensor:
        """Wrap the array, maybe a read-only memory map; clusterers do not write to their input."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self.array).view(self.dtype)


def _work(index: int, sent: Any) -> tuple[int, Clustered]:
    job: Job = exchanged(_Sent.received, sent, _Sent)
    return index, cluster_here(job, get_catalog())
