"""Threads for kernels that release the interpreter's lock.

Plain threads rather than numba's parallel loops: those start an OpenMP pool, which neither
survives a fork nor takes calls from several threads, and compile far more slowly.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from numba import config

from palette_core._common.openmp import let_openmp_rest
from palette_core._common.scratch import keep_scratch, let_scratch_go

T = TypeVar("T")
R = TypeVar("R")


def thread_count() -> int:
    """Return how many threads to use: the smaller of what torch and numba are set to."""
    return max(1, min(torch.get_num_threads(), int(getattr(config, "NUMBA_NUM_THREADS", 1))))


_inside = threading.local()


def map_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return ``[function(item) for item in items]``, on threads; the first error is raised.

    Called on one of its own threads, it works through the items there. See `spread`.
    """
    found: dict[int, R] = {}

    def one(at: int) -> None:
        found[at] = function(items[at])

    spread(one, range(len(items)))
    return [found[at] for at in range(len(items))]


def spread(function: Callable[[T], object], items: Sequence[T]) -> None:
    """Call ``function`` for each item, on threads that stay; the caller works along.

    Each takes the next item when it is done with one. After an error, what has begun ends and the
    rest does not begin; the error of the foremost item is raised. Callers on several threads do
    not wait for each other. `scratch` is kept on each thread until all is done.
    """
    workers = min(thread_count(), len(items))
    if workers <= 1 or on_a_thread():
        for item in items:
            function(item)
        return
    left, errors = iter(enumerate(items)), dict[int, BaseException]()

    def work() -> None:
        at = -1
        keep_scratch()
        try:
            for at, item in left:  # noqa: B007 - each is handed to one thread
                function(item)
        except BaseException as error:
            errors[at] = error
            deque(left, maxlen=0)
        finally:
            let_scratch_go()

    helpers: list[Future[None]] = []
    try:
        with contextlib.suppress(RuntimeError):  # the interpreter is on its way out
            helpers += (_staying().submit(work) for _ in range(workers - 1))
        _marked(work)
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.result()
    if errors:
        raise errors[min(errors)]


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield each item with ``function(item)`` once that is done; the caller works along.

    For work of milliseconds, in which the interpreter has its share: a thread that only waits for
    the others would take its lock from them with each result. After an error, or where nobody asks
    for more, what has begun ends and the rest does not begin.

    Args:
        function: what is called with each item, on any of the threads.
        items: what takes longest first. Others begin there and the caller at the end: those are in
            kernels most of the time, and it has the interpreter for itself.
    """
    left = deque(items)
    done: deque[tuple[T, R]] = deque()

    def work(take: Callable[[], T]) -> Iterator[tuple[T, R]]:
        while True:
            try:
                item = take()
            except IndexError:  # perhaps another thread has just taken the last one
                return
            try:
                result = function(item)
            except BaseException:
                left.clear()
                raise
            yield item, result

    def help_out() -> None:
        for each in work(left.popleft):
            done.append(each)

    count = min(thread_count(), len(left)) - 1
    pool = ThreadPoolExecutor(max(1, count), initializer=_begin)
    try:
        helpers = [pool.submit(help_out) for _ in range(count)]
        mine = work(left.pop)
        while (each := _marked(lambda: next(mine, None))) is not None:
            yield each
            while done:
                yield done.popleft()
            for helper in helpers:
                if helper.done():
                    helper.result()  # an error of its
        for helper in helpers:
            helper.result()
        yield from done
    finally:
        left.clear()
        pool.shutdown()


def _marked(call: Callable[[], R]) -> R:
    """Call as on a thread of ours."""
    before = on_a_thread()
    _inside.marked = True
    try:
        return call()
    finally:
        _inside.marked = before


@functools.cache
def _staying() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(int(getattr(config, "NUMBA_NUM_THREADS", 1)), initializer=_mark)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_staying.cache_clear)  # threads do not come along


def take_the_cores() -> None:
    """Have no threads of OpenMP beside ours: for work that takes far more than a millisecond.

    Does nothing on a thread of ours, which leaves the other cores to others.
    """
    if not on_a_thread():
        let_openmp_rest()


def pool_of(tasks: int) -> ThreadPoolExecutor:
    """Return a pool for so many tasks; on its threads no further threads are started."""
    return ThreadPoolExecutor(min(thread_count(), tasks), initializer=_begin)


def on_a_thread() -> bool:
    """Return whether the caller runs on a thread of ours, while others keep the cores busy."""
    return getattr(_inside, "marked", False)


def _begin() -> None:
    """Begin on a thread of a pool that ends with its work, and takes what it keeps along."""
    _mark()
    keep_scratch()


def _mark() -> None:
    _inside.marked = True


def slices_of(count: int, size: int) -> list[slice]:
    """Cut ``count`` points into slices of at most ``size``; never depends on the threads."""
    return [slice(at, min(count, at + size)) for at in range(0, count, size)]
