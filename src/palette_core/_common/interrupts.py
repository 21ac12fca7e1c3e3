"""Ctrl-C, told from a KeyboardInterrupt that code raises by itself."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from palette_core._common.undoing import undone


@contextlib.contextmanager
def only_signals_interrupt() -> Iterator[None]:
    """Let what the handler of a signal raises out of the block, though the block catches it.

    So the block may catch every exception of code that may raise anything, `KeyboardInterrupt`
    included, and Ctrl-C still interrupts.
    """
    raised: list[BaseException] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # signals reach no other
        found = {number: signal.getsignal(number) for number in signal.valid_signals()}
        handlers = {number: handler for number, handler in found.items() if callable(handler)}
    with undone(list(handlers.items()), lambda item: signal.signal(*item)):
        for number, handler in handlers.items():
            signal.signal(number, _noting(handler, raised))
        yield
    if raised:
        raise raised[0]


def _noting(handler: Any, raised: list[BaseException]) -> Any:
    def handle(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    return handle
