"""Scales beside one table, on normal weights: relative error, bits per weight, seconds.

    python benchmarks/scales.py [--size 1024] [--bits 4] [--repeat 3]

The seconds of each row are processor time in ``prepare``, the least of several runs taken in
turn with those of other rows, and their ratio to the row without scales.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    bits_per_weight,
)

ROWS: dict[str, dict[str, Any]] = {
    "no scale": {},
    "per channel, range": {"enable_per_channel_scale": True, "scale_fit": "range"},
    "per channel": {"enable_per_channel_scale": True},
    "blocks of 128": {"scale_block_size": 128},
    "blocks of 64, range": {"scale_block_size": 64, "scale_fit": "range"},
    "blocks of 64": {"scale_block_size": 64},
    "blocks of 32": {"scale_block_size": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--bits", type=int, default=4, choices=(1, 2, 3, 4, 6, 8))
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    weight = torch.randn(options.size, options.size, generator=torch.Generator().manual_seed(0))
    measured(weight[:64, :128], options.bits, ROWS["blocks of 64"])  # compiles
    first = None
    print(f"{'':<22}{'error':>9}{'bits':>8}{'seconds':>10}{'ratio':>8}")
    runs = [
        {name: measured(weight, options.bits, fields) for name, fields in ROWS.items()}
        for _ in range(options.repeat)
    ]
    for name in ROWS:
        error, bits, _ = runs[0][name]
        seconds = min(run[name][2] for run in runs)
        first = seconds if first is None else first
        print(f"{name:<22}{error:>9.4f}{bits:>8.2f}{seconds:>10.3f}{seconds / first:>8.1f}")


def measured(
    weight: torch.Tensor, n_bits: int, fields: dict[str, Any]
) -> tuple[float, float, float]:
    """Return relative error, bits per weight and seconds."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    spec = PalettizationSpec(n_bits=n_bits, **fields)
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    )
    model = nn.Sequential(layer)
    start = time.process_time()
    KMeansPalettizer(model, config).prepare((torch.zeros(1, weight.shape[1]),))
    seconds = time.process_time() - start
    gap = model[0].weight.detach() - weight
    return float(gap.norm() / weight.norm()), bits_per_weight(model), seconds


if __name__ == "__main__":
    main()
