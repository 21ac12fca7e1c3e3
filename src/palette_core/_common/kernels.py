"""Compilation of kernels: by numba, without the interpreter's lock, and kept on disk.

The only place that calls numba's decorators. Importing it imports numba, which takes a while: only
modules that hold kernels do.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numba
from numba.core import event

_PACKAGE = __name__.partition(".")[0]
_MESSAGE = (
    f"{_PACKAGE}: compiling kernels for this machine; this happens once and takes ten to "
    "fifteen seconds"
)
_AGAIN = (
    f"{_PACKAGE}: compiling kernels, which takes ten to fifteen seconds in every process: "
    "no folder to keep them in can be written to; NUMBA_CACHE_DIR may name one"
)

_not_kept: list[str] = []


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called."""
    return _compile(function, {})


def kernel_with(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator like `kernel`, with further options of ``numba.njit``."""
    return lambda function: _compile(function, options)


def inner_kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels alone call: faster, without a way in for the interpreter."""
    return _compile(function, {"no_cpython_wrapper": True})


def short_kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that is over so soon that it had better keep the interpreter's lock.

    To hand it to another thread and take it back takes longer.
    """
    return _compile(function, {"nogil": False})


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function as a part of each one that calls it, rather than by itself as well."""
    return _compile(function, {"inline": "always"})


def is_compiled(function: Any) -> bool:
    """Return whether a kernel has been compiled, in this process or into a cache on disk."""
    return bool(function.signatures) or _is_on_disk(function)


@functools.cache
def _is_on_disk(function: Any) -> bool:
    """Look into numba's cache, once, for machine code of this kernel for this machine."""
    index = getattr(getattr(function, "_cache", None), "_cache_file", None)
    try:
        return index is not None and bool(index._load_index())
    except OSError:
        return False


def are_kept() -> bool:
    """Return whether compiled kernels outlive this process."""
    return not _not_kept


def _compile(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    _announce_compiling()
    options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, **options}
    try:
        # Beside the source; where that is read-only, in a folder of the user's.
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba can write to neither
        _not_kept.append(function.__name__)
        return numba.njit(**options)(function)


class _Announcer(event.Listener):
    """Prints one line to stderr when the first kernel of ours is compiled in this process."""

    def __init__(self) -> None:
        self._said = False

    def on_start(self, event: Any) -> None:
        """Look whose function numba starts to compile; kernels from its cache do not come here."""
        module = event.data["dispatcher"].py_func.__module__
        if not self._said and module.startswith(f"{_PACKAGE}."):
            self._said = True
            print(_MESSAGE if are_kept() else _AGAIN, file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None:
        """Do nothing."""


@functools.cache
def _announce_compiling() -> None:
    """From now on, say so when a kernel has to be compiled; once per process."""
    event.register("numba:compile", _Announcer())  # type: ignore[no-untyped-call]
