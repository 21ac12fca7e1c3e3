"""Compilation in a process beside this one, while this one loads and traces a model.

The other process keeps what it compiles where numba keeps it; this one takes it from there, and
waits for what is still to come. Where there is no second core, or no such process, everything is
compiled here, when it is first called.
"""

from __future__ import annotations

import atexit
import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

FoundT = TypeVar("FoundT")

_BEHIND = 10  # niceness for what nobody waits for
_LONGEST = 120.0  # seconds, after which this process no longer counts on the other
_LOOK = 0.02  # seconds between two looks at what is there


class Ahead:
    """The other process, of which there is at most one at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._coming: frozenset[str] = frozenset()
        self._until = 0.0

    def start(self, recipe: str, kernels: Iterable[Any]) -> None:
        """Begin to compile, and return at once.

        Args:
            recipe: ``"module:NAMES"``, what the other process compiles: mappings of kernels to the
                types of their arguments, by names with commas between. Its import should not take
                longer than what it saves. All but the first are compiled when the cores have
                nothing better to do.
            kernels: which of them this process is to wait for where it calls them, functions of
                `kernels.kernel`.
        """
        if self._process is not None or not _has_room():
            return
        try:
            self._process = subprocess.Popen(
                # -P: nothing is imported from the working folder.
                [
                    sys.executable,
                    "-P",
                    "-c",
                    f"from {__name__} import compile_all as c; c({recipe!r})",
                ],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.PIPE,  # ends with this process, however that ends
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        except OSError:  # no more processes, or none allowed
            return
        self._until = time.monotonic() + _LONGEST
        self._coming = frozenset(map(name_of, kernels))
        atexit.register(self.stop)

    def is_to_bring(self, function: Callable[..., Any]) -> bool:
        """Return whether the other process compiles this function, and is not done."""
        return self._process is not None and name_of(function) in self._coming

    def wait(self, look: Callable[[], FoundT | None]) -> FoundT | None:
        """Return what ``look`` finds, or None where the other process ended without it."""
        while self._process is not None:
            over = self._process.poll() is not None or time.monotonic() > self._until
            found = look()  # after the other process was seen to have ended, once more
            if found is not None:
                return found
            if over:
                self.stop()
            else:
                time.sleep(_LOOK)
        return None

    def stop(self) -> None:
        """End the other process, where there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        process.kill()
        process.communicate()


AHEAD = Ahead()
"""The one of this process."""


def name_of(function: Any) -> str:
    """Return a name that is the same in every process."""
    function = getattr(function, "py_func", function)
    return f"{function.__module__}.{function.__qualname__}"


def _has_room() -> bool:
    """Return whether another process of this interpreter can be started, and would be of use."""
    is_python = Path(sys.executable or "").name.startswith("python")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return is_python and not getattr(sys, "frozen", False) and (cores or 1) > 1


def compile_all(recipe: str) -> None:
    """Compile the kernels of a recipe: what the other process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from numba.core.sigutils import normalize_signature

    module, _, names = recipe.partition(":")
    for turn, name in enumerate(names.split(",")):
        if turn == 1 and hasattr(os, "nice"):
            os.nice(_BEHIND)
        for function, types in getattr(importlib.import_module(module), name).items():
            arguments, _ = normalize_signature(types)  # type: ignore[no-untyped-call]
            function.compile(arguments)
    os._exit(0)  # an orderly end would have to wait for the thread that reads


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
