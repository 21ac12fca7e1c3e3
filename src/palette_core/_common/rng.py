"""Leave the global random states of Python, numpy and torch as they were."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes


@contextlib.contextmanager
def untouched_global_rng() -> Iterator[None]:
    """Restore the global random states on exit, those of CUDA devices in use included."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if _cuda_in_use() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def global_rng() -> tuple[object, ...]:
    """Return the global random states, those of CUDA devices aside, to be compared and put back."""
    name, keys, *rest = np.random.get_state(legacy=True)
    with _disable_current_modes():  # in a trace, tensors made here would be without values
        torch_state = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), (name, np.asarray(keys).tobytes(), *rest), torch_state


def set_global_rng(states: tuple[Any, ...]) -> None:
    """Put back what `global_rng` has returned."""
    python, (name, keys, *rest), torch_state = states
    random.setstate(python)
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))
    with _disable_current_modes():
        torch.set_rng_state(torch.frombuffer(bytearray(torch_state), dtype=torch.uint8))


def all_rng() -> tuple[object, ...]:
    """Return what `global_rng` does, and the states of CUDA devices in use."""
    states = torch.cuda.get_rng_state_all() if _cuda_in_use() else ()
    return (global_rng(), *(state.numpy().tobytes() for state in states))


def set_all_rng(states: tuple[Any, ...]) -> None:
    """Put back what `all_rng` has returned."""
    usual, *cuda = states
    set_global_rng(usual)
    for device, state in enumerate(cuda):
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8), device)


def _cuda_in_use() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def derive_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed that depends on the config's seed and a tensor's name only."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
