"""Runs that wait in the middle, each on a thread of its own; only one of them runs at a time."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from palette_core.statistics.activations.runs import Stop


class NoThreadError(Exception):
    """Raised where the system starts no more threads."""


class Waiting:
    """A call that may stop where it is and wait, until it is told to go on.

    Threads rather than greenlets: what torch keeps by thread (modes, autocast, whether gradients
    are recorded) and what is on the stacks of its C++ code then stays with each call.

    Args:
        call: gets this object; runs as if it were called by whoever made it, torch's modes,
            autocast and devices included.
    """

    def __init__(self, call: Callable[[Waiting], object]) -> None:
        self._call = call
        self._surroundings = surroundings()
        self._context = contextvars.copy_context()
        self._thread: threading.Thread | None = None
        self._go, self._idle = threading.Event(), threading.Event()
        self._ending = False
        self._failure: BaseException | None = None
        self.ended = False

    # --- by whoever lets it run ---------------------------------------------------------------

    def resume(self) -> None:
        """Let it run until it waits or ends.

        Raises:
            BaseException: what the call has raised.
            NoThreadError: the system starts no more threads.
        """
        self._idle.clear()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._context.run, args=(self._run,), name="palette_core run", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError as error:
                self._thread, self.ended = None, True
                raise NoThreadError from error
        else:
            self._go.set()
        self._wait()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _wait(self) -> None:
        """Wait for it; on Ctrl-C, until it has noticed."""
        interrupted: BaseException | None = None
        while not self._idle.is_set():
            try:
                self._idle.wait()
            except BaseException as error:
                interrupted = error
                self._ending = True
        if interrupted is not None:
            self._failure = None
            raise interrupted

    def close(self) -> None:
        """End it where it is; what it raises then is of no interest."""
        self._ending = self.ended = True
        if self._thread is None:
            return
        interrupted: BaseException | None = None
        while self._thread.is_alive():
            try:
                self._go.set()
                self._thread.join()
            except BaseException as error:  # Ctrl-C: the model is still being used
                interrupted = error
        if interrupted is not None:
            raise interrupted

    # --- by the call itself -------------------------------------------------------------------

    def wait(self) -> None:
        """Wait until it is to go on.

        Raises:
            Stop: it is to end instead.
        """
        self.check()
        self._idle.set()
        self._go.wait()
        self._go.clear()
        self.check()

    def check(self) -> None:
        """Raise `Stop` where it is to end."""
        if self._ending:
            raise Stop

    def _run(self) -> None:
        try:
            with self._surroundings():
                self._call(self)
        except Stop:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            self.ended = True
            self._idle.set()


def can_wait() -> bool:
    """Return whether another thread can be made to run as this one does."""
    return not _get_current_dispatch_mode_stack()  # those may hold on to their thread


_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


def surroundings() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return what makes torch's state by thread on another thread as it is here."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocast = [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_cache_enabled())
        for device in _AUTOCAST
        if torch.is_autocast_enabled(device)
    ]
    cuda = torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    stream = torch.cuda.current_stream() if cuda else None

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(gradients))
            if inference:
                stack.enter_context(torch.inference_mode())
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            for device, dtype, caches in autocast:
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=caches))
            for mode in modes:
                stack.enter_context(_again(mode))
            yield

    return entered


def _again(mode: Any) -> Any:
    """Return a mode to be entered once more; that of devices remembers where it was entered."""
    return DeviceContext(mode.device) if type(mode) is DeviceContext else mode
