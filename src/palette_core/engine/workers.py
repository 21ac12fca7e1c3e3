"""Clustering in joblib's workers: what is sent to them, and what their failures are called."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, NoReturn, TypeVar

import joblib
import numpy as np
import torch
from joblib.parallel import get_active_backend
from torch import Tensor

from palette_core.engine.cluster_tensor import cluster_here
from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered
from palette_core.errors import PaletteError, WorkerError, named_text_of, shortened
from palette_core.planning import TensorPlan
from palette_core.plugins.catalog import get_catalog
from palette_core.tensors.moments import InputMoments
from palette_core.tensors.sensitivities import Sensitivity

_log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_LOST = 2  # times that a call may be at work when a worker ends; then it is the likely cause
_AT_ONCE = 4  # calls for each worker, where results come when all are there
_ALONE = "num_workers=1 clusters in this process"
_RETRY = "what is finished is kept by the palettizer, so that preparing again takes up from there"


def starts_processes() -> bool:
    """Return whether workers are yet to be started, which takes seconds.

    Raises:
        WorkerError: the backend that joblib is told to use cannot be worked with.
    """
    backend = get_active_backend()[0]
    name = type(backend).__name__
    if name == "MultiprocessingBackend":
        raise WorkerError(
            f"joblib's {name} forks this process, whose threads do not live on in the copies; use "
            f"'loky', 'threading', 'dask' or 'ray' in joblib.parallel_config, or {_ALONE}"
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
    shared: dict[int, np.ndarray[Any, Any]] = {}
    calls = (
        (
            i,
            jobs[i].plan,
            *_to_numpy(jobs[i].weight),
            _numpy(jobs[i].importance),
            _sent(jobs[i].moments, shared),
        )
        for i in queue
    )
    plans = [jobs[i].plan for i in queue]
    for index, result in called_in_workers(_work, calls, num_workers, plans):
        device = jobs[index].weight.device
        yield index, replace(result, palettized=result.palettized.to(device))


def called_in_workers(
    function: Callable[..., T],
    calls: Iterable[Sequence[Any]],
    num_workers: int,
    plans: Sequence[TensorPlan],
) -> Iterator[T]:
    """Call a function in workers, and yield what it returns in the order it is done.

    Backends of joblib that give no results before all are there, such as that of ray, get a few
    calls at a time. Where a process ends before it is done, others take up what was at work.

    Args:
        function: of a module.
        calls: its arguments; taken from there as workers become free.
        num_workers: how many work at a time.
        plans: of all weights that the calls are about.

    Raises:
        PaletteError: the first failure.
        WorkerError: workers were killed again and again or cannot be reached, or a call cannot be
            sent to one.
        OSError: as the function raises it.
    """
    unfinished = _Unfinished(calls)
    try:
        while unfinished.more:
            try:
                for number, result in _results(function, unfinished, num_workers):
                    unfinished.done(number)
                    yield result
            except BrokenExecutor as error:
                unfinished.lost(error)
    except (PaletteError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:  # each backend has exceptions of its own
        if not isinstance(error, Exception) and not _named(error, "CancelledError"):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of files; those of lost connections have no number
        _explain(error, plans)


class _Unfinished:
    """Calls that are not done: those that were lost come first, then those not yet begun."""

    def __init__(self, calls: Iterable[Sequence[Any]]) -> None:
        self._ended = False
        self._fresh = iter(enumerate(calls))
        self._lost: deque[tuple[int, Sequence[Any]]] = deque()
        self._at_work: dict[int, Sequence[Any]] = {}
        self._times: Counter[int] = Counter()

    @property
    def more(self) -> bool:
        return not self._ended or bool(self._lost or self._at_work)

    def __iter__(self) -> Iterator[tuple[int, Sequence[Any]]]:
        self._lost.extend(self._at_work.items())  # of a pass that workers have left
        self._at_work.clear()
        for number, arguments in chain(_taken(self._lost), self._fresh):
            self._at_work[number] = arguments
            yield number, arguments
        self._ended = True

    def done(self, number: int) -> None:
        del self._at_work[number]

    def lost(self, error: BrokenExecutor) -> None:
        """Count what was at work; raises the error where a call has been lost too often."""
        self._times.update(self._at_work.keys())
        if any(self._times[number] > _MOST_LOST for number in self._at_work):
            raise error
        _log.warning("a worker process ended early; calls done again: %d", len(self._at_work))


def _taken(lost: deque[T]) -> Iterator[T]:
    while lost:
        yield lost.popleft()


def _results(
    function: Callable[..., T], unfinished: _Unfinished, num_workers: int
) -> Iterator[tuple[int, T]]:
    delayed = (joblib.delayed(_numbered)(i, function, *given) for i, given in unfinished)
    if get_active_backend()[0].supports_return_generator:
        run = joblib.Parallel(n_jobs=num_workers, batch_size=1, return_as="generator_unordered")
        yield from run(delayed)  # one at a time, so that little is lost with a worker
        return
    with joblib.Parallel(n_jobs=num_workers) as parallel:
        while some := list(islice(delayed, _AT_ONCE * num_workers)):
            yield from parallel(some)


def _numbered(number: int, function: Callable[..., T], *arguments: Any) -> tuple[int, T]:
    return number, function(*arguments)


def _explain(error: BaseException, plans: Sequence[TensorPlan]) -> NoReturn:
    what = shortened(named_text_of(error).partition("\n")[0])
    if isinstance(error, BrokenExecutor) or _named(error, "KilledWorker", "RayActorError"):
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
    return index, cluster_here(job, get_catalog())


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Wrap an array, possibly a read-only memory map; clusterers do not write to their input."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
