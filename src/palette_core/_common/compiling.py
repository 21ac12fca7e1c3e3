"""Tell a user who waits that kernels are being compiled."""

from __future__ import annotations

import functools
import sys
from typing import Any

from numba.core import event

from palette_core._common.compiled import are_kept

_MESSAGE = (
    "palette_core: compiling kernels for this machine; this happens once and takes ten to "
    "fifteen seconds"
)
_AGAIN = (
    "palette_core: compiling kernels, which takes ten to fifteen seconds in every process: "
    "no folder to keep them in can be written to; NUMBA_CACHE_DIR may name one"
)


class _Announcer(event.Listener):
    """Prints one line to stderr when the first kernel of ours is compiled in this process."""

    def __init__(self) -> None:
        self._said = False

    def on_start(self, event: Any) -> None:
        """Look whose function numba starts to compile; kernels from its cache do not come here."""
        module = event.data["dispatcher"].py_func.__module__
        if not self._said and module.startswith("palette_core."):
            self._said = True
            print(_MESSAGE if are_kept() else _AGAIN, file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None:
        """Do nothing."""


@functools.cache
def announce_compiling() -> None:
    """From now on, say so when a kernel has to be compiled; once per process."""
    event.register("numba:compile", _Announcer())  # type: ignore[no-untyped-call]
