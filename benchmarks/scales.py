"""Scales beside one table, on normal weights or a real model: error, bits per weight, seconds.

    python benchmarks/scales.py [--size 1024] [--bits 4] [--repeat 3]
    PALETTE_LOADERS=folder python benchmarks/scales.py --model smollm2 [--rows 'blocks of 64']

Seconds are those of ``prepare``, the least of several runs taken in turn with those of other rows:
processor time, with its ratio to the first row, and by the clock. Of a model all linear layers are
palettized, which are on one thread if ``--threads`` says nothing else, and the error is that of
all of them. An issue wants a whole SmolLM2 in 3 seconds.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import models
import torch
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
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


MODELS: dict[str, Callable[[], models.Loaded]] = {
    "smollm2": models.smollm2,
    "minilm": models.minilm,
    "whisper": models.whisper,
}


@dataclass(frozen=True)
class Measured:
    """Relative error, bits per palettized weight, and seconds in ``prepare``."""

    error: float
    bits: float
    processor: float
    clock: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--model", choices=MODELS, help="instead of normal weights")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--bits", type=int, default=4, choices=(1, 2, 3, 4, 6, 8))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.model:
        model, inputs = MODELS[options.model]()
    else:
        model, inputs = layer(options.size, options.size)
    torch.set_num_threads(options.threads)
    measured(*layer(64, 128), options.bits, ROWS["blocks of 64"])  # compiles
    runs = [
        {name: measured(model, inputs, options.bits, ROWS[name]) for name in options.rows}
        for _ in range(options.repeat)
    ]
    print(f"{'':<22}{'error':>9}{'bits':>8}{'processor':>11}{'ratio':>8}{'clock':>8}")
    first = None
    for name in options.rows:
        seconds = min(run[name].processor for run in runs)
        first = seconds if first is None else first
        print(
            f"{name:<22}{runs[0][name].error:>9.4f}{runs[0][name].bits:>8.2f}{seconds:>11.3f}"
            f"{seconds / first:>8.1f}{min(run[name].clock for run in runs):>8.2f}"
        )


def layer(outputs: int, inputs: int) -> models.Loaded:
    """Return a linear layer with normal weights, and what it reads."""
    made = nn.Linear(inputs, outputs, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)))
    return nn.Sequential(made), (torch.zeros(1, inputs),)


def measured(
    dense: nn.Module, inputs: tuple[Any, ...], n_bits: int, fields: dict[str, Any]
) -> Measured:
    """Palettize the linear layers of a copy, in the largest blocks that divide their inputs."""
    model, weights = copy.deepcopy(dense), _weights(dense)
    names = {}
    for name, weight in weights.items():
        own = {"n_bits": n_bits, **fields}
        if wanted := own.get("scale_block_size"):
            own["scale_block_size"] = _divisor(weight.shape[1], wanted)
        spec = PalettizationSpec(**own)
        names[name] = ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    palettizer = KMeansPalettizer(
        model, KMeansPalettizerConfig(global_config=None, module_name_configs=names)
    )
    processor, clock = time.process_time(), time.perf_counter()
    palettizer.prepare(inputs)
    processor, clock = time.process_time() - processor, time.perf_counter() - clock
    assert palettizer.report is not None
    off = norm = 0.0
    for name, weight in weights.items():
        off += float((model.get_submodule(name).weight.detach() - weight).double().square().sum())
        norm += float(weight.double().square().sum())
    bits = palettizer.report.bits_per_palettized_weight
    return Measured((off / norm) ** 0.5, bits, processor, clock)


def _divisor(count: int, wanted: int) -> int:
    return max(size for size in range(1, wanted + 1) if count % size == 0)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, nn.Linear)}


if __name__ == "__main__":
    main()
