"""OpenMP's threads: torch computes with them, and they stay busy while they wait for more.

After each of torch's functions they look out for the next one for some milliseconds, so that it
begins at once. Threads of our own would have to share their cores with them meanwhile.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
from collections.abc import Callable

import torch

_SOFT = 1  # omp_pause_soft: the next function of torch has threads again


def let_openmp_rest() -> None:
    """Let the threads that the caller's has started rest, until torch needs threads again.

    By ``omp_pause_resource_all`` (OpenMP 5.0, section 3.2.44). That takes a tenth of a millisecond
    where there are two, and beginning anew as long: for work of ours that takes far longer.

    By GNU's library alone: threads of LLVM's do not rest when told to (libomp 14). And not in a
    process that may have been forked, as threads would be waited for that have not come along.
    """
    if torch.get_num_threads() > 1:
        for pause in _pauses():
            pause(_SOFT)


@functools.cache
def _pauses() -> tuple[Callable[[int], int], ...]:
    """Return that function of each of GNU's libraries that are loaded by now; torch's is."""
    from threadpoolctl import threadpool_info

    if _forked or multiprocessing.parent_process() is not None:
        return ()
    paths = [each["filepath"] for each in threadpool_info() if each["prefix"] == "libgomp"]
    found = (getattr(ctypes.CDLL(path), "omp_pause_resource_all", None) for path in paths)
    return tuple(each for each in found if each is not None)


_forked: list[bool] = []


def _note_fork() -> None:
    _forked.append(True)
    _pauses.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
