"""A cluster that a command sends its work to, by its address on the command line."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import joblib
import typer

from palette_core.errors import WorkerError

ADDRESSES = "dask://HOST:PORT or ray://HOST:PORT"
_PATIENCE = "30 s"  # until a scheduler answers; ray has as much of its own
# Actors that are started anew do what they had to do once more, and nobody else notices.
_PERSISTENT = {"max_restarts": -1, "max_task_retries": -1}


@contextlib.contextmanager
def workers_at(address: str | None, num_workers: int) -> Iterator[int]:
    """Let joblib send work to a cluster while the block runs; yields how many tasks at a time.

    Args:
        address: ``dask://HOST:PORT`` of a scheduler of dask.distributed, or ``ray://HOST:PORT`` of
            the head of a cluster of ray, where its clients connect; None leaves everything as it
            is.
        num_workers: of the command line; 1 becomes as many as the cluster has threads.

    Raises:
        typer.BadParameter: it is no such address, or the library is not installed.
        WorkerError: nobody answers there, or the cluster has no workers.
    """
    if address is None:
        yield num_workers
        return
    scheme, _, host = address.partition("://")
    if scheme not in _CLUSTERS or not host:
        raise typer.BadParameter(f"--executor is {ADDRESSES} of a cluster, not {address!r}")
    with _CLUSTERS[scheme](address) as (threads, backend):
        if not threads:
            raise WorkerError(f"the cluster at {address} has no workers; start some, then again")
        with joblib.parallel_config(**backend):
            yield threads if num_workers == 1 else num_workers


@contextlib.contextmanager
def _dask(address: str) -> Iterator[tuple[int, dict[str, Any]]]:
    distributed = _imported("distributed", "distributed")
    host = address.partition("://")[2]
    try:
        client = distributed.Client(f"tcp://{host}", timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise WorkerError(f"no scheduler of dask answers at {address}: {error}") from error
    with client:
        yield sum(client.nthreads().values()), {"backend": "dask"}


@contextlib.contextmanager
def _ray(address: str) -> Iterator[tuple[int, dict[str, Any]]]:
    ray = _imported("ray", "ray[client]")
    try:
        ray.init(address, log_to_driver=False)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise WorkerError(f"no cluster of ray answers at {address}: {error}") from error
    try:
        importlib.import_module("ray.util.joblib").register_ray()
        threads = int(ray.cluster_resources().get("CPU", 0))
        yield threads, {"backend": "ray", "ray_remote_args": _PERSISTENT}
    finally:
        ray.shutdown()


def _imported(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise typer.BadParameter(
            f"--executor needs {module}, which is not installed: pip install {distribution}"
        ) from None


_CLUSTERS: dict[str, Callable[[str], contextlib.AbstractContextManager[Any]]] = {
    "dask": _dask,
    "ray": _ray,
}
