"""Runs that wait in the middle, each on a thread of its own; only one of them runs at a time."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from palette_core._common.rng import all_rng
from palette_core.statistics.activations.lending import is_worth_it
from palette_core.statistics.activations.own_threads import OwnThreads, own_threads
from palette_core.statistics.activations.runs import Stop
from palette_core.statistics.activations.thread_state import state_of_thread, surroundings

_PATIENCE = 10.0  # seconds in which nothing is computed
_PIECES = 4  # in which they are waited for
_MOST_WAITING = 512  # each of them takes two to three megabytes
_MOST_THREADS = 1024  # those that OpenMP starts for each of them included: past its limit it aborts


class CannotWait(BaseException):
    """Raised where runs cannot take turns: these have to be run one after the other."""


class _Signal:
    """A flag that one thread raises and another waits for and takes down.

    A plain lock: an event has several, and takes longer to wake somebody.
    """

    def __init__(self) -> None:
        self._down = threading.Lock()
        self._down.acquire()

    def wait(self, timeout: float = -1) -> bool:
        """Wait until it is raised, take it down, and return whether it was, within some seconds."""
        return self._down.acquire(timeout=timeout)

    def set(self) -> None:
        """Raise it."""
        with contextlib.suppress(RuntimeError):  # it is raised
            self._down.release()


class _Asked:
    """Something to be computed by another thread, and what came of it."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._work: tuple[Any, tuple[Any, ...], Mapping[str, Any]] | None = (func, args, kwargs)
        self._gradients = torch.is_grad_enabled()
        self._made: Any = None
        self._failure: Exception | None = None

    def compute(self) -> None:
        """Compute it; what is raised is for whoever asked, but for Ctrl-C and its like."""
        assert self._work is not None
        (func, args, kwargs), self._work = self._work, None
        try:
            with torch.set_grad_enabled(self._gradients):
                self._made = func(*args, **kwargs)
        except Exception as error:
            self._failure = error

    def answer(self) -> Any:
        """Return what was made, or raise what it has raised."""
        if self._failure is not None:
            raise self._failure
        return self._made


class Waiting:
    """A call that may stop where it is and wait, until it is told to go on.

    What is large in it is computed by whoever lets it run; see `lending`.

    Threads rather than greenlets: what torch keeps by thread (modes, autocast, whether gradients
    are recorded) and what is on the stacks of its C++ code then stays with each call.

    Args:
        call: gets this object; runs as if it were called by whoever made it, torch's modes,
            autocast and devices included.

    Attributes:
        lent: something in it has been computed by whoever lets it run.
        ended: it has returned, raised something, or is to end.
    """

    def __init__(self, call: Callable[[Waiting], object]) -> None:
        self._call = call
        self._surroundings = surroundings()
        self._context = contextvars.copy_context()
        self._thread: threading.Thread | None = None
        self._go, self._idle, self._answered = _Signal(), _Signal(), _Signal()
        # Of our own: an interrupted join lets a thread be thought dead (Python 3.11).
        self._begun, self._left = threading.Event(), threading.Event()
        self._ready = threading.Event()
        self._ending = False
        self._failure: BaseException | None = None
        self._host: tuple[object, ...] | None = None
        self._own: OwnThreads | None = None
        self._asked: _Asked | None = None
        self.lent = self.ended = False

    # --- by whoever lets it run ---------------------------------------------------------------

    def resume(self) -> None:
        """Let it run until it waits or ends.

        Raises:
            BaseException: what the call has raised.
            CannotWait: the system starts no more threads, or the call waits for another one.
        """
        self._host = state_of_thread()
        if self._thread is None:
            self._own = None if self._host is None else own_threads()
            self._thread = threading.Thread(
                target=self._context.run, args=(self._run,), name="palette_core run", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError as error:
                self._thread, self.ended = None, True
                raise CannotWait from error
            if self._own is not None:
                self._see_it_begin(self._own)
        else:
            self._go.set()
        self._wait()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _see_it_begin(self, own: OwnThreads) -> None:
        interrupted: BaseException | None = None
        while not self._ready.is_set():
            try:
                self._ready.wait()
            except BaseException as error:  # Ctrl-C: what it sets for all is still to be put back
                interrupted = error
        own.begun()
        if interrupted is not None:
            self._ending = True
            raise interrupted
        self._go.set()

    def _wait(self) -> None:
        """Wait for it, and compute what it asks for, but not where it waits for another one.

        That one may hold a lock, for example.
        """
        try:
            spent, idle = time.process_time(), 0
            # More than once: clocks jump where a machine is put to sleep, or its process is.
            while idle < _PIECES:
                while self._idle.wait(_PATIENCE / _PIECES):
                    if self._asked is None:
                        return
                    self._answer()
                before, spent = spent, time.process_time()
                idle = idle + 1 if spent - before < _PATIENCE / _PIECES / 100 else 0
            raise CannotWait
        except BaseException:
            self._ending = True
            raise

    def _answer(self) -> None:
        asked, self._asked = self._asked, None
        assert asked is not None
        asked.compute()
        self.lent = True
        self._answered.set()

    def end(self) -> None:
        """Have it end; what it raises then is of no interest."""
        self._ending = self.ended = True
        self._go.set()
        self._answered.set()

    def close(self) -> None:
        """End it; where it may wait for another one, tell that to `end` first."""
        self.end()
        interrupted: BaseException | None = None
        while self._begun.is_set() and not self._left.is_set():
            try:
                self._left.wait()
            except BaseException as error:  # Ctrl-C: the model is still being used
                interrupted = error
        if self._thread is not None and self._begun.is_set():
            self._thread.join()
        self._call = _nothing  # which held what holds this, until garbage is collected
        if interrupted is not None:
            raise interrupted

    # --- by the call itself -------------------------------------------------------------------

    def wait(self) -> None:
        """Wait until it is to go on.

        Raises:
            Stop: it is to end instead.
        """
        self.check()
        self._leave_to(self._go)
        self.check()

    def compute(
        self, func: Any, types: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return what a function of torch makes of arguments.

        Raises:
            Stop: it is to end instead.
        """
        self.check()
        if self._host is None or not is_worth_it(func, types, args, kwargs):
            return func(*args, **kwargs)
        if state_of_thread() != self._host:
            if self._own is not None:
                self._own.take_all()
            return func(*args, **kwargs)
        asked = self._asked = _Asked(func, args, kwargs)
        self._leave_to(self._answered)
        self.check()
        return asked.answer()

    def _leave_to(self, signal: _Signal) -> None:
        """Let whoever lets it run go on, until there is a signal."""
        if self._own is not None:
            self._own.hand_over()
        self._idle.set()
        signal.wait()
        if self._own is not None:
            self._own.go_on()

    def check(self) -> None:
        """Raise `Stop` where it is to end."""
        if self._ending:
            raise Stop

    def _run(self) -> None:
        self._begun.set()
        try:
            if self._own is not None:
                try:
                    self._own.begin()
                finally:
                    self._ready.set()
                self._go.wait()
            self.check()
            with self._surroundings():
                self._call(self)
        except Stop:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            self.ended = True
            self._idle.set()
            self._left.set()


def _nothing(waiting: Waiting) -> None:
    """Stand for a call that has ended."""


def can_wait(calls: int) -> bool:
    """Return whether that many calls may wait at once, each running as this thread does."""
    return (
        not _get_current_dispatch_mode_stack()  # those may hold on to their thread
        and calls <= _MOST_WAITING
        and calls * torch.get_num_threads() <= _MOST_THREADS
    )


def settings() -> tuple[object, ...]:
    """Return what is set for the whole process, and would be mixed up by calls that take turns."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        id(warnings.filters),
        warnings.showwarning,
        sys.stdout,
        sys.stderr,
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()),  # type: ignore[no-untyped-call]
        (cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()),  # type: ignore[no-untyped-call]
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        torch.backends.mkldnn.enabled,
    )


@contextlib.contextmanager
def nothing_drawn() -> Iterator[None]:
    """Look once whether calls have drawn random numbers, whose states are not put aside for each.

    Raises:
        CannotWait: they have.
    """
    usual = all_rng()
    yield
    if all_rng() != usual:
        raise CannotWait
