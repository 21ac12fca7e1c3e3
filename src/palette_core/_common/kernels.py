"""Compilation of kernels: by numba, without the interpreter's lock, and kept on disk.

The only place that calls numba's decorators. Importing it imports numba, which takes a while: only
modules that hold kernels do.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import numba
from llvmlite import binding
from numba.core import event
from numba.core.caching import FunctionCache
from numba.core.sigutils import normalize_signature

from palette_core._common.ahead import AHEAD, name_of

_PACKAGE = __name__.partition(".")[0]
_MESSAGE = (
    f"{_PACKAGE}: compiling kernels for this machine; this happens once and takes five to "
    "fifteen seconds"
)
_AGAIN = (
    f"{_PACKAGE}: compiling kernels, which takes five to fifteen seconds in every process: "
    "they cannot be kept; NUMBA_CACHE_DIR may name a folder for them"
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


def may_compile() -> bool:
    """Return whether kernels are compiled: NUMBA_DISABLE_JIT leaves them plain Python."""
    return not getattr(numba.config, "DISABLE_JIT", 0)


def has_feature(feature: str) -> bool:
    """Return whether the processor that kernels are compiled for has a feature, such as avx2."""
    named = os.environ.get("NUMBA_CPU_FEATURES")
    if named is not None:
        return f"+{feature}" in named.split(",")
    return bool(binding.get_host_cpu_features().get(feature))


def is_compiled(function: Any) -> bool:
    """Return whether a kernel has been compiled, in this process or into a cache on disk.

    One that is to stay plain Python counts as compiled: nothing is gained by waiting.
    """
    if not may_compile():
        return True
    return bool(function.overloads) or _is_on_disk(function)


@functools.cache
def _is_on_disk(function: Any) -> bool:
    """Look into numba's cache, once, for machine code of this kernel for this machine."""
    index = getattr(getattr(function, "_cache", None), "_cache_file", None)
    try:
        return index is not None and bool(index._load_index())
    except Exception:  # a damaged file may raise anything
        return False


def are_kept() -> bool:
    """Return whether compiled kernels outlive this process."""
    return not _not_kept


def compile_ahead(
    recipe: str, kernels: Mapping[Any, str], later: Mapping[Any, str] | None = None
) -> None:
    """Let another process compile what is not compiled yet; see `ahead.Ahead.start`.

    Args:
        recipe: ``"module:NAMES"`` of the two mappings.
        kernels: kernels in the order of use, and the types of their arguments.
        later: others, which nobody waits for as long as there is something else to do.
    """
    missing = [each for each in (*kernels, *(later or ())) if not is_compiled(each)]
    if missing and are_kept():
        first = [(name_of(each), partial(_compile_for, each, kernels[each])) for each in kernels]
        AHEAD.start(recipe, missing, first)


def _compile_for(function: Any, types: str) -> None:
    arguments, _ = normalize_signature(types)  # type: ignore[no-untyped-call]
    function.compile(arguments)


def _compile(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    _watch_compiling()
    options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, **options}
    if function.__closure__:
        _name_by_contents(function)
    made = numba.njit(**options)(function)
    try:
        # Beside the source; where that is read-only, in a folder of the user's.
        made._cache = _Cache(function)  # type: ignore[no-untyped-call]
    except RuntimeError:  # numba can write to neither
        _not_kept.append(function.__name__)
    return made


def _name_by_contents(function: Callable[..., Any]) -> None:
    """Give each kernel that one factory makes a name of its own.

    Machine code calls by name, and those that several processes compile, each to its own number,
    have one name: loaded into one process, the first would be called in place of all others.
    """
    digest = hashlib.sha256(repr(_made_of(function)).encode()).hexdigest()[:12]
    function.__qualname__ += f"_{digest}"


class _Cache(FunctionCache):
    """Cache of a kernel on disk that is left alone where its files are damaged, or the disk full.

    numba itself raises whatever it meets there, and no kernel can be called any more.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what is kept of a signature, or another process is about to keep, or None."""

        def look() -> Any:
            return FunctionCache.load_overload(self, sig, target_context)  # type: ignore[no-untyped-call]

        try:
            found = look()
            if found is None and AHEAD.is_to_bring(self._py_func):
                _say_once()
                found = AHEAD.wait(self._py_func, look)
            return found
        except Exception as error:  # what unpickling meets in a damaged file
            self._leave(self._damaged(sig, target_context), "cannot be read", error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what a signature was compiled to."""
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except Exception as error:
            self._leave(self._cache_file._index_path, "cannot be written", error)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """Return what tells the kept versions of a kernel apart.

        Kernels and intrinsics that it calls count by what they are made of. numba leaves out
        those of other modules, so that what is kept outlives a change of them; and pickles those
        that it closes over, with a number of their own that differs in every process, so that
        nothing kept is ever found.
        """
        if not any(isinstance(value, FunctionType) for value in _used_by(self._py_func)):
            return super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        made_of = repr(_made_of(self._py_func)).encode()
        return (sig, codegen.magic_tuple(), hashlib.sha256(made_of).hexdigest())

    def _damaged(self, sig: Any, target_context: Any) -> str:
        file: Any = self._cache_file
        key: Any = self._index_key
        try:
            name = file._load_index()[key(sig, target_context.codegen())]
        except Exception:
            return str(file._index_path)
        return str(file._data_path(name))

    def _leave(self, path: str, what: str, error: Exception) -> None:
        self.disable()  # type: ignore[no-untyped-call]
        _not_kept.append(self._py_func.__name__)
        print(
            f"{_PACKAGE}: {path} {what} ({type(error).__name__}: {error}); its kernel is compiled "
            "in every process until that file is deleted, or there is room for it",
            file=sys.stderr,
            flush=True,
        )


def _used_by(function: Any) -> list[Any]:
    """Return what a function closes over or knows by a global name, of what makes it what it is.

    Functions, of kernels and intrinsics those that they are made of, and constants.
    """
    known = function.__globals__
    values = [cell.cell_contents for cell in function.__closure__ or ()]
    values += [known[name] for name in _names(function.__code__) if name in known]
    package = function.__module__.partition(".")[0]
    found = []
    for value in values:
        made = getattr(value, "py_func", getattr(value, "_defn", None))
        helps = isinstance(value, FunctionType) and value.__module__.split(".")[0] == package
        if made or helps or isinstance(value, (int, float, str)):
            found.append(made or value)
    return found


def _names(code: CodeType) -> list[str]:
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return [*code.co_names, *itertools.chain.from_iterable(inner)]


def _made_of(function: Any, *callers: Any) -> tuple[Any, ...]:
    """Return a kernel's name, code, constants and what it uses: numbers, and other functions."""
    inner = [
        _made_of(value, function, *callers) if isinstance(value, FunctionType) else value
        for value in _used_by(function)
        if value not in (function, *callers)
    ]
    return function.__module__, function.__qualname__, *_instructions(function.__code__), *inner


def _instructions(code: CodeType) -> list[Any]:
    found: list[Any] = [code.co_code]
    for value in code.co_consts:
        if isinstance(value, CodeType):
            found += _instructions(value)
        elif isinstance(value, (int, float, str, tuple)):
            found.append(value)
    return found


class _Watcher(event.Listener):
    """Watches numba compile kernels of ours; those from its cache do not come here.

    Prints one line to stderr at the first one of this process, and keeps the garbage collector
    from looking through all that a compiler holds on to, again and again: a sixth of the time.
    """

    def __init__(self) -> None:
        self._depth = 0  # numba compiles on one thread at a time
        self._collects = False

    def on_start(self, event: Any) -> None:
        """Look whose function numba starts to compile."""
        if not _is_ours(event):
            return
        _say_once()
        if self._depth == 0:
            self._collects = gc.isenabled()
            gc.disable()
        self._depth += 1

    def on_end(self, event: Any) -> None:
        """Let the garbage collector work again after the last one."""
        if not _is_ours(event):
            return
        self._depth -= 1
        if self._depth == 0 and self._collects:
            gc.enable()


def _is_ours(event: Any) -> bool:
    return str(event.data["dispatcher"].py_func.__module__).startswith(f"{_PACKAGE}.")


@functools.cache
def _say_once() -> None:
    print(_MESSAGE if are_kept() else _AGAIN, file=sys.stderr, flush=True)


@functools.cache
def _watch_compiling() -> None:
    """From now on, attend to kernels that have to be compiled."""
    event.register("numba:compile", _Watcher())  # type: ignore[no-untyped-call]
