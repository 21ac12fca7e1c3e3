"""State that torch keeps by thread: modes, autocast, gradients and streams; to take it along."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


def state_of_thread() -> tuple[object, ...] | None:
    """Return what torch keeps by thread, or None where no other thread can be given the same.

    That is the sets of what it dispatches to, in which ``torch.func``, inference and modes of
    dispatch have their keys; whether gradients are recorded is left out.
    """
    if _get_current_function_mode_stack() or torch.is_autocast_enabled("cpu"):  # type: ignore[no-untyped-call]
        return None
    included = torch._C._dispatch_tls_local_include_set()
    excluded = torch._C._dispatch_tls_local_exclude_set()
    return included.raw_repr(), excluded.raw_repr()


_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


def surroundings() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return what makes torch's state by thread on another thread as it is here."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocast = [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_cache_enabled())
        for device in _AUTOCAST
        if torch.is_autocast_enabled(device)
    ]
    cuda = torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    stream = torch.cuda.current_stream() if cuda else None

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(gradients))
            if inference:
                stack.enter_context(torch.inference_mode())
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            for device, dtype, caches in autocast:
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=caches))
            for mode in modes:
                stack.enter_context(_again(mode))
            yield

    return entered


def _again(mode: Any) -> Any:
    """Return a mode to be entered once more; that of devices remembers where it was entered."""
    return DeviceContext(mode.device) if type(mode) is DeviceContext else mode
