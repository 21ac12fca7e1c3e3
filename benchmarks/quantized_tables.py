"""Quantized tables over many blocks, beside coreai-opt: seconds and errors as ratios.

    python benchmarks/quantized_tables.py [--rounds N] [--only WORD]

Needs coreai-opt (``pip install coreai-opt``). Each case is a linear layer with int8 tables,
prepared by both in turn, a first time unmeasured; the quickest of the rounds counts. Below 1 ours
is faster, and its error smaller.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from typing import Any

import coreai_opt.palettization as theirs
import coreai_opt.palettization.spec as their_spec
import torch
from coreai_opt.quantization.spec import QuantizationSpec as TheirTable
from torch import Tensor, nn

import palette_core as ours

CASES: dict[str, tuple[tuple[int, int], dict[str, int], dict[str, int]]] = {
    # weight, spec, groups
    "1024 to 10, axis 1 by 2, 4 bits": ((10, 1024), {"n_bits": 4}, {"axis": 1, "group_size": 2}),
    "1024 to 10, axis 1 by 2, 2 bits": ((10, 1024), {"n_bits": 2}, {"axis": 1, "group_size": 2}),
    "10 rows by 2, pairs at 4 bits": (
        (10, 1024), {"n_bits": 4, "cluster_dim": 2}, {"axis": 0, "group_size": 2}
    ),
    "256² rows by 2, pairs at 3 bits": (
        (256, 256), {"n_bits": 3, "cluster_dim": 2}, {"axis": 0, "group_size": 2}
    ),
    "1024² rows by 16, 6 bits": ((1024, 1024), {"n_bits": 6}, {"axis": 0, "group_size": 16}),
    "1024² columns by 4, 4 bits": ((1024, 1024), {"n_bits": 4}, {"axis": 1, "group_size": 4}),
    "1024², 4 bits": ((1024, 1024), {"n_bits": 4}, {}),
    "1024², 8 bits": ((1024, 1024), {"n_bits": 8}, {}),
}  # fmt: skip


def prepared(
    library: Any, grouped: Any, table: Any, weight: Tensor, spec: dict[str, int], groups: Any
) -> tuple[float, float]:
    """Return the seconds that ``prepare`` takes, and the mean squared error."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    made: dict[str, Any] = {**spec, "lut_qspec": table(dtype=torch.int8)}
    if groups:
        made["granularity"] = grouped(**groups)
    module = library.ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": library.PalettizationSpec(**made)},
        enable_fast_kmeans_mode="cluster_dim" not in spec,
    )
    config = library.KMeansPalettizerConfig(global_config=module)
    palettizer = library.KMeansPalettizer(nn.Sequential(layer), config)
    inputs = (torch.zeros(1, weight.shape[1]),)
    start = time.perf_counter()
    model = palettizer.prepare(inputs)
    seconds = time.perf_counter() - start
    return seconds, float((model[0].weight.detach() - weight).square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases with this in their name")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    their_api = theirs
    their_api.PalettizationSpec = their_spec.PalettizationSpec
    sides = (
        (ours, ours.PerGroupedChannelGranularity, ours.QuantizationSpec),
        (their_api, their_spec.PerGroupedChannelGranularity, TheirTable),
    )
    for name, (shape, spec, groups) in CASES.items():
        if options.only not in name:
            continue
        weight = 0.02 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        found: list[list[tuple[float, float]]] = [[], []]
        for _ in range(options.rounds + 1):
            for side, one in zip(sides, found, strict=True):
                one.append(prepared(*side, weight, spec, groups))
        seconds, errors = ([min(row[i] for row in one[1:]) for one in found] for i in range(2))
        print(f"{name}: {seconds[0] / seconds[1]:.2f} of the time, "
              f"{errors[0] / errors[1]:.3f} of the error", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
