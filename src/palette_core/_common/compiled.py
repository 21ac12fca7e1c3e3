"""How kernels are compiled: by numba, without the interpreter's lock, and kept on disk.

Importing this imports numba, which takes a while: only modules that hold kernels do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba

_not_kept: list[str] = []


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called."""
    return _compile(function, {})


def kernel_with(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator like `kernel`, with further options of ``numba.njit``."""
    return lambda function: _compile(function, options)


def short_kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that is over so soon that it had better keep the interpreter's lock.

    To hand it to another thread and take it back takes longer.
    """
    return _compile(function, {"nogil": False})


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function as a part of each one that calls it, rather than by itself as well."""
    return _compile(function, {"inline": "always"})


def is_compiled(function: Any) -> bool:
    """Say whether a kernel has been compiled, in this process or into a cache on disk."""
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
    """Say whether compiled kernels outlive this process."""
    return not _not_kept


def _compile(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, **options}
    try:
        # Beside the source; where that is read-only, in a folder of the user's.
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba can write to neither
        _not_kept.append(function.__name__)
        return numba.njit(**options)(function)
