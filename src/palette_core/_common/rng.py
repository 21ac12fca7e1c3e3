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
    cuda = torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if cuda else ()
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


def derive_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed that depends on the config's seed and a tensor's name only."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
