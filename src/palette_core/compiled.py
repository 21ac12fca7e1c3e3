"""How kernels are compiled: by numba, without the interpreter's lock, and kept on disk.

Importing this imports numba, which takes a while: only modules that hold kernels do.
"""

from __future__ import annotations

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


def are_kept() -> bool:
    """Say whether compiled kernels outlive this process."""
    return not _not_kept


def _compile(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        # Beside the source; where that is read-only, in a folder of the user's.
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba can write to neither
        _not_kept.append(function.__name__)
        return numba.njit(**options)(function)
