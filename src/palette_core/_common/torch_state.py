"""Settings of torch that must be as before whatever ends a call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_MODES: Any = torch.overrides


@contextlib.contextmanager
def torch_state_kept() -> Iterator[None]:
    """Leave gradient mode and the modes that see torch's functions as they were.

    Each ``with`` statement does so by itself, but for an interrupt that comes after its block and
    before what it leaves has begun to work. A generator is closed even then.
    """
    modes, gradients = _mode_count(), torch.is_grad_enabled()
    try:
        try:
            yield
        finally:
            _put_back(modes, gradients)
    finally:
        _put_back(modes, gradients)  # what an interrupt has left


def _put_back(modes: int, gradients: bool) -> None:
    while _mode_count() > modes:
        _MODES._pop_mode()
    if torch.is_grad_enabled() != gradients:
        torch.set_grad_enabled(gradients)


def _mode_count() -> int:
    return len(_MODES._get_current_function_mode_stack())
