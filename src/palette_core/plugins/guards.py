"""Calls of plug-ins' code: failures name the plug-in, and the process is as before.

What they return is checked in `palette_core.plugins.checked`, one module for each kind. Nothing
here imports torch: a command of a plug-in may do without.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from palette_core._common.interrupts import only_signals_interrupt
from palette_core.errors import PaletteError, named_text_of, text_of

ResultT = TypeVar("ResultT")

_NOTHING = contextlib.nullcontext()  # may be entered as often as one likes


def guarded(
    who: str,
    error: type[PaletteError],
    call: Callable[[], ResultT],
    *,
    tensor: str = "",
    about: str = "",
    passes: tuple[type[BaseException], ...] = (),
    is_ours: bool = False,
    may_draw: bool = False,
) -> ResultT:
    """Run a plug-in's code.

    Ctrl-C is the user's, and memory that runs out is nobody's fault: both pass. So do errors of
    palette_core, which have been worded already; one that does not begin with the tensor that it
    is about gets ``who`` in front. Settings of the process are as before, see `settings_kept`.

    Args:
        who: the plug-in, for messages, after the tensor where there is one.
        error: the class of what any other failure becomes.
        call: the code.
        tensor: name of the tensor that it is about.
        about: what it was asked, for messages: ``" for shape (8, 8)"``.
        passes: what else is for the caller as it is.
        is_ours: the code comes with the core, which need not look after its settings.
        may_draw: it may move the global random states.
    """
    failure: BaseException
    let_pass: tuple[type[BaseException], ...] = (MemoryError, *passes)
    if is_ours:
        let_pass = (KeyboardInterrupt, *let_pass)
    with _NOTHING if is_ours else _looked_after(may_draw):
        try:
            return call()
        except (*let_pass, *_out_of_memory()):
            raise
        # A plug-in must not end the user's program, by SystemExit, a panic in Rust or whatever.
        except BaseException as raised:
            failure = raised
    if not isinstance(failure, PaletteError):
        raise error(f"{who} failed{about}: {named_text_of(failure)}") from failure
    text = text_of(failure)
    if text.startswith(tensor):
        raise failure
    known = type(failure).__module__ == PaletteError.__module__
    plain = known and "__init__" not in vars(type(failure))
    raise (type(failure) if plain else error)(f"{who}: {text}") from failure


def shown(value: object) -> str:
    """Return the ``repr`` of what a plug-in made, for messages, also where that fails."""
    try:
        return repr(value)
    except Exception:
        return f"a {type(value).__name__}"


@contextlib.contextmanager
def _looked_after(may_draw: bool) -> Iterator[None]:
    with only_signals_interrupt(), settings_kept(may_draw=may_draw):
        yield


@contextlib.contextmanager
def settings_kept(*, may_draw: bool = False) -> Iterator[None]:
    """Put back what a plug-in changes of the process.

    The working directory, and of torch: threads, default dtype and device, whether gradients are
    recorded, autocast, precision and determinism; of numpy: what it makes of errors; and the global
    random states of Python, numpy and torch. What is as before is not touched.

    Args:
        may_draw: leave the random states as they come.
    """
    before = [(put_back, look, look()) for look, put_back in _settings(may_draw)]
    try:
        yield
    finally:
        for put_back, look, value in before:
            if look() != value:
                put_back(value)


def _settings(may_draw: bool) -> Iterator[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """Yield what looks at a setting, and what sets it."""
    yield _folder, _change_folder
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "compile"):  # not imported, or not to the end
        return
    yield torch.get_num_threads, torch.set_num_threads
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.get_default_device, partial(_set_default_device, torch)
    yield torch.is_grad_enabled, torch.set_grad_enabled
    yield torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    for device in ("cpu", "cuda"):
        yield (
            partial(torch.is_autocast_enabled, device),
            partial(torch.set_autocast_enabled, device),
        )
    for name in ("deterministic", "benchmark"):
        cudnn = torch.backends.cudnn
        yield partial(getattr, cudnn, name), partial(setattr, cudnn, name)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        yield numpy.geterr, lambda modes: numpy.seterr(**modes)
    if not may_draw:
        from palette_core._common import rng

        yield rng.global_rng, rng.set_global_rng


def _folder() -> str | None:
    with contextlib.suppress(OSError):
        return os.getcwd()
    return None  # somebody has removed it


def _change_folder(path: str | None) -> None:
    with contextlib.suppress(OSError):
        if path is not None:
            os.chdir(path)


def _set_default_device(torch: Any, device: Any) -> None:
    # None is the CPU without a mode that looks at every call of torch.
    torch.set_default_device(None if device.type == "cpu" else device)


def _out_of_memory() -> tuple[type[BaseException], ...]:
    torch: Any = sys.modules.get("torch")
    return (torch.OutOfMemoryError,) if hasattr(torch, "OutOfMemoryError") else ()
