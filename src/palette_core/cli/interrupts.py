"""Requests to end, treated as Ctrl-C is: workers are stopped, temporary files removed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ending:
    """Which signal asked the program to end, or none."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextlib.contextmanager
def ends_like_an_interrupt() -> Iterator[Ending]:
    """Raise KeyboardInterrupt where SIGTERM or SIGHUP would kill the process without a word.

    The first such signal interrupts, later ones are ignored, so that they do not interrupt what
    is being put back. A signal that somebody handles or ignores already (``nohup``) stays theirs.
    For programs, not for libraries: signals belong to the program.
    """
    ending = Ending()

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        if ending.signal is not None:
            return
        ending.signal = number
        raise KeyboardInterrupt

    taken = []
    if threading.current_thread() is threading.main_thread():  # nobody else may handle signals
        taken = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, interrupt)
        yield ending
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
