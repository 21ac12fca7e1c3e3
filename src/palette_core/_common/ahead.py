"""Compilation in processes beside this one, while this one loads, traces and runs a model.

They keep what they compile where numba keeps it; this one takes it from there, and waits for what
is still to come. Where there is no second core, or no such process, everything is compiled here,
when it is first called.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, final

FoundT = TypeVar("FoundT")

Task = tuple[str, Callable[[], object]]
"""The name of a kernel, see `name_of`, and what compiles it here."""

_BEHIND = 10  # niceness for what nobody waits for
_LONGEST = 120.0  # seconds, after which this process no longer counts on the other
_LOOK = 0.02  # seconds between two looks at what is there


@final
class _Other:
    """A process that compiles, and what it is to bring."""

    def __init__(
        self, process: subprocess.Popen[bytes], coming: set[str], first: Sequence[Task]
    ) -> None:
        self.process = process
        self.coming = coming
        self._first = list(first)
        self._begun = 0
        self._until = time.monotonic() + _LONGEST
        atexit.register(self.end)

    def is_over(self) -> bool:
        """Return whether it has ended, or is not to be waited for any longer."""
        return self.process.poll() is not None or time.monotonic() > self._until

    def relieve(self) -> bool:
        """Compile here what it would come to last of what it does first, if there is such."""
        self._begun += _read_some(self.process)
        if len(self._first) <= self._begun:
            return False
        name, compile_it = self._first.pop()
        self.coming.discard(name)  # else it would be waited for
        with contextlib.suppress(Exception):  # it fails again where it is called, and says so there
            compile_it()
        return True

    def end(self) -> None:
        """End it."""
        atexit.unregister(self.end)
        self.process.kill()
        self.process.communicate()


@final
class Ahead:
    """The other processes: one for each recipe that was begun, as long as something may come."""

    def __init__(self) -> None:
        self._others: list[_Other] = []

    def start(self, recipe: str, kernels: Iterable[Any], first: Sequence[Task] = ()) -> None:
        """Begin to compile, and return at once.

        Args:
            recipe: ``"module:NAMES"``, what the other process compiles: mappings of kernels to the
                types of their arguments, by names with commas between. Its import should not take
                longer than what it saves. All but the first are compiled when the cores have
                nothing better to do.
            kernels: which of them this process is to wait for where it calls them, functions of
                `kernels.kernel`. Where all of them are on their way, nothing is begun.
            first: what compiles each of the first mapping here, in its order. Who would only wait
                for one begins with those at the end.
        """
        coming = {name_of(each) for each in kernels}.difference(*(o.coming for o in self._others))
        if not coming or not _has_room():
            return
        try:
            process = subprocess.Popen(
                # -P: nothing is imported from the working folder.
                [
                    sys.executable,
                    "-P",
                    "-c",
                    f"from {__name__} import compile_all as c; c({recipe!r})",
                ],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.PIPE,  # ends with this process, however that ends
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        except OSError:  # no more processes, or none allowed
            return
        self._others.append(_Other(process, coming, first if _can_read_some(process) else ()))

    def is_to_bring(self, function: Callable[..., Any]) -> bool:
        """Return whether another process compiles this function, and is not done."""
        return self._bringing(function) is not None

    def wait(
        self, function: Callable[..., Any], look: Callable[[], FoundT | None]
    ) -> FoundT | None:
        """Return what ``look`` finds of a function, or None where its process ended without it."""
        while (other := self._bringing(function)) is not None:
            over = other.is_over()
            found = look()  # after the other process was seen to have ended, once more
            if found is not None:
                return found
            if over:
                self._others.remove(other)
                other.end()
            elif not other.relieve():
                time.sleep(_LOOK)
        return look()

    def _bringing(self, function: Callable[..., Any]) -> _Other | None:
        name = name_of(function)
        return next((other for other in self._others if name in other.coming), None)


AHEAD = Ahead()
"""Those of this process."""


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
            os.write(1, b".")  # to stdout: it has begun the next one
            arguments, _ = normalize_signature(types)  # type: ignore[no-untyped-call]
            function.compile(arguments)
    os._exit(0)  # an orderly end would have to wait for the thread that reads


def _can_read_some(process: subprocess.Popen[bytes]) -> bool:
    """Make what a process prints readable without waiting for it, if the system can do so."""
    if os.name != "posix":
        return False
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    return True


def _read_some(process: subprocess.Popen[bytes]) -> int:
    """Return how many bytes have come that were not read yet."""
    assert process.stdout is not None
    try:
        return len(os.read(process.stdout.fileno(), 1 << 10))
    except BlockingIOError:
        return 0


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
