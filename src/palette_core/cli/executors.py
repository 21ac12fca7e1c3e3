"""A cluster that a command sends its work to, by its address on the command line."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import typer

from palette_core.errors import WorkerError

_DASK = "dask://"
_PATIENCE = "30 s"  # until a scheduler answers


@contextlib.contextmanager
def workers_at(address: str | None, num_workers: int) -> Iterator[int]:
    """Let joblib send work to a cluster while the block runs; yields how many tasks at a time.

    Args:
        address: ``dask://HOST:PORT`` of a scheduler of dask.distributed; None leaves everything as
            it is.
        num_workers: of the command line; 1 becomes as many as the cluster has threads.

    Raises:
        typer.BadParameter: it is no such address, or dask.distributed is not installed.
        WorkerError: nobody answers there, or the scheduler has no workers.
    """
    if address is None:
        yield num_workers
        return
    host = address.removeprefix(_DASK)
    if not address.startswith(_DASK) or not host:
        raise typer.BadParameter(f"--executor is dask://HOST:PORT of a scheduler, not {address!r}")
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise typer.BadParameter(
            "--executor needs dask.distributed: pip install distributed"
        ) from None
    import joblib

    try:
        client = distributed.Client(f"tcp://{host}", timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise WorkerError(f"no scheduler of dask answers at {address}: {error}") from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise WorkerError(f"the scheduler at {address} has no workers; start some, then again")
        with joblib.parallel_config(backend="dask"):
            yield threads if num_workers == 1 else num_workers
