"""Conversions of which OpenVINO sends no usage events."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def untold() -> Iterator[None]:
    """Let OpenVINO send no usage events meanwhile.

    It forks the process for each, from a thread: that takes the longer the more a process holds,
    and can abort it. Nobody who writes a file has asked for it.
    """
    try:
        from openvino_telemetry.utils.sender import TelemetrySender
    except ImportError:  # installed without it, nothing is sent
        yield
        return
    with _lock:
        if not _muted:
            _muted.append(TelemetrySender.send)
            TelemetrySender.send = _keep
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:  # the last of several threads puts it back
                TelemetrySender.send = _muted.pop()


_lock = threading.Lock()
_muted: list[Any] = []  # what was there before
_inside: list[None] = []  # one for each conversion that goes on


def _keep(sender: Any, *message: Any) -> None:
    pass
