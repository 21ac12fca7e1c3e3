"""What checksums cost, as a share of the time of loading and of saving a packed checkpoint.

    python benchmarks/checkpoints.py [--layers 16] [--size 2048] [--rounds 7]

The seconds that checksums take are counted within each round; figures are those of the
fastest. Digests of hashlib are timed over the same bytes, for comparison.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from palette_core import load_checkpoint
from palette_core.storage import checksums, write_checkpoint
from palette_core.tensors import PalettizedTensor


class Watched:
    """`checksum`, with the seconds that it takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, tensor: torch.Tensor) -> str:
        started = time.perf_counter()
        try:
            return _checksum(tensor)
        finally:
            self.seconds += time.perf_counter() - started


_checksum = checksums.checksum


def share(call: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of a call, and which share of them checksums are."""
    checksums.checksum = watched = Watched()
    taken = call()
    return taken, watched.seconds / taken


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    size = arguments.size
    lut = torch.linspace(-1, 1, 16).reshape(1, 1, 16, 1)
    weights = {
        f"{number}.weight": PalettizedTensor(
            torch.randint(0, 16, (size, size), dtype=torch.uint8), lut, 4, 0, torch.float32
        )
        for number in range(arguments.layers)
    }
    dense = {f"{number}.bias": torch.zeros(size) for number in range(arguments.layers)}
    path = Path(tempfile.mkdtemp()) / "model.safetensors"

    def save() -> float:
        return seconds(lambda: write_checkpoint(path, weights, dense))

    def load() -> float:
        model = nn.Sequential(*(nn.Linear(size, size) for _ in range(arguments.layers)))
        return seconds(lambda: load_checkpoint(path, model))

    print(f"{arguments.layers} weights of {size} x {size}, 4 bits")
    for name, call in (("save", save), ("load", load)):
        runs = [share(call) for _ in range(arguments.rounds)]
        taken, part = min(runs)
        print(f"{name}: {taken:.3f} s, of which checksums are {part:.1%}")
    data = path.read_bytes()
    for digest in (zlib.crc32, hashlib.sha256, hashlib.blake2b):
        took = min(seconds(lambda digest=digest: digest(data)) for _ in range(arguments.rounds))
        print(f"{digest.__name__}: {took / taken:.1%} of loading {len(data) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
