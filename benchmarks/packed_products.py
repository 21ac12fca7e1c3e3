"""How long layers of a finalized model take from packed weights, as ratios to dense ones.

    python benchmarks/packed_products.py [--only TEXT] [--threads 2] [--repeats 40] [--json FILE]

Palettes are made up. Dense and packed calls take turns in one process, and the shortest of each
are compared: what else the machine does makes calls longer, never shorter. ``generating.py`` is
about a whole model.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from palette_core.storage import PackedWeight
from palette_core.storage.pack import install_packed
from palette_core.tensors import PalettizedTensor


def packed_copy(
    layer: nn.Module, n_bits: int, *, dim: int = 1, axis: int = 0, group: int = 0
) -> nn.Module:
    """Return a copy of a layer whose weight is packed, of entries drawn at random."""
    made = copy.deepcopy(layer)
    shape = list(made.weight.shape)
    grid = [shape[0] // group if group else 1, *(1 for _ in shape[1:])]
    shape[axis] //= dim
    indices = torch.randint(0, 1 << n_bits, shape).to(torch.uint8)
    lut = torch.randn(*grid, 1 << n_bits, dim).to(layer.weight.dtype) * layer.weight.std()
    tensor = PalettizedTensor(indices, lut, n_bits, axis, layer.weight.dtype)
    install_packed(made, ["weight"], PackedWeight(tensor))
    return made


def cases() -> dict[str, tuple[nn.Module, nn.Module, torch.Tensor, float]]:
    """Return dense layer, packed layer, input and target by name."""
    torch.manual_seed(0)
    linear = nn.Linear(4096, 4096)
    one, many = torch.randn(1, 4096), torch.randn(64, 4096)
    found = {
        "linear 4096², 4 bits, batch 1": (linear, packed_copy(linear, 4), one, 0.6),
        "linear 4096², 4 bits, batch 64": (linear, packed_copy(linear, 4), many, 1.2),
        "linear 4096², 4 bits, groups of 32, batch 1": (
            linear, packed_copy(linear, 4, group=32), one, 0.6,
        ),
    }  # fmt: skip
    for n_bits in (1, 2, 3, 6, 8):
        name = f"linear 4096², {n_bits} bits, batch 1"
        found[name] = (linear, packed_copy(linear, n_bits), one, 0.75)
    for axis in (0, 1):
        for n_bits in (4, 6):
            name = f"linear 4096², pairs on axis {axis}, {n_bits} bits, batch 1"
            found[name] = (linear, packed_copy(linear, n_bits, dim=2, axis=axis), one, 0.75)
    for dtype in (torch.bfloat16, torch.float16):
        half = nn.Linear(4096, 4096, dtype=dtype)
        for count in (1, 64):
            name = f"linear 4096², 4 bits, {str(dtype)[6:]}, batch {count}"
            x = torch.randn(count, 4096, dtype=dtype)
            found[name] = (half, packed_copy(half, 4), x, float("nan"))
    conv, image = nn.Conv2d(256, 256, 3, padding=1), torch.randn(1, 256, 28, 28)
    found["conv 3×3 256→256, 28², 4 bits"] = (conv, packed_copy(conv, 4), image, 1.15)
    table, tokens = nn.Embedding(49152, 576), torch.randint(0, 49152, (256,))
    found["embedding 49152×576, 4 bits, 256 tokens"] = (
        table, packed_copy(table, 4), tokens, float("nan"),
    )  # fmt: skip
    return found


@torch.inference_mode()
def shortest(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the shortest seconds of each call, calls taking turns."""
    for call in calls.values():
        call()
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def layers(only: str, repeats: int) -> dict[str, dict[str, float]]:
    """Measure single layers."""
    rows = {}
    for name, (dense, packed, x, target) in cases().items():
        if only in name:
            calls = {"dense": partial(dense, x), "packed": partial(packed, x)}
            found = shortest(calls, repeats)
            rows[name] = show(name, found["dense"], found["packed"], target)
    return rows


def show(name: str, dense: float, packed: float, target: float) -> dict[str, float]:
    """Print a row, and return it."""
    ratio = packed / dense
    aim = "" if target != target else f"{target:>8.2f}{'' if ratio <= target else '  missed'}"
    print(f"{name:<48}{dense * 1e3:>10.3f}{ratio:>9.2f}{aim}", flush=True)
    return {"dense_ms": dense * 1e3, "ratio": ratio, "target": target}


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"load {os.getloadavg()[0]:.1f}, {options.threads} threads")
    print(f"{'case':<48}{'dense ms':>10}{'ratio':>9}{'target':>8}")
    rows = layers(options.only, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
