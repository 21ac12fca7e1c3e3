"""Quantized tables over many blocks, beside coreai-opt: seconds and errors as ratios.

    python benchmarks/quantized_tables.py [--rounds N] [--only WORD]

Needs coreai-opt (``pip install coreai-opt``). Each case is a linear layer with quantized tables,
prepared by both in turn, a first time unmeasured; the least processor time of the rounds counts.
Below 1 ours is faster, and its error smaller.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from typing import Any, NamedTuple

import coreai_opt.palettization as theirs
import coreai_opt.palettization.spec as their_spec
import torch
from coreai_opt.quantization.spec import QuantizationSpec as TheirTable
from torch import Tensor, nn

import palette_core as ours

Found = tuple[float, float]

INT8, UINT8, FLOAT8 = torch.int8, torch.uint8, torch.float8_e4m3fn


class Case(NamedTuple):
    """A weight, what it becomes, and in which groups; none for one table."""

    rows: int
    columns: int
    n_bits: int
    axis: int = 0
    group: int | None = None
    cluster_dim: int = 1
    table: torch.dtype = INT8

    def __str__(self) -> str:
        groups = "" if self.group is None else f", axis {self.axis} by {self.group}"
        vectors = "" if self.cluster_dim == 1 else f" for {self.cluster_dim}"
        name = str(self.table).removeprefix("torch.")
        return f"{self.rows} x {self.columns}{groups}, {self.n_bits} bits{vectors}, {name}"


CASES = [
    # many tiny blocks
    *(Case(10, 1024, bits, axis=1, group=2) for bits in (1, 2, 3, 4)),
    *(Case(10, 1024, 4, axis=1, group=2, table=table) for table in (UINT8, FLOAT8)),
    Case(10, 1024, 4, group=2, cluster_dim=2),
    Case(256, 256, 3, group=2, cluster_dim=2),
    Case(1024, 256, 2, group=1),
    *(Case(1024, 1024, bits, group=1) for bits in (1, 4, 6)),
    # blocks between
    *(Case(1024, 1024, bits, group=16) for bits in (1, 2, 3, 4, 6, 8)),
    *(Case(1024, 1024, 6, group=16, table=table) for table in (UINT8, FLOAT8)),
    Case(1024, 1024, 4, axis=1, group=4),
    Case(1024, 1024, 4, group=16, cluster_dim=2),
    # few huge ones
    *(Case(64, 64, bits) for bits in (2, 4)),
    *(Case(1024, 1024, bits) for bits in (1, 2, 3, 4, 6, 8)),
    *(Case(1024, 1024, bits, table=table) for bits in (4, 8) for table in (UINT8, FLOAT8)),
    *(Case(2048, 4096, bits) for bits in (2, 4, 8)),
    Case(2048, 4096, 6, group=1024),
    Case(2048, 1024, 4, cluster_dim=2),
]


def prepared(library: Any, grouped: Any, table: Any, weight: Tensor, case: Case) -> Found:
    """Return the seconds of processor time that ``prepare`` takes, and the mean squared error."""
    layer = nn.Linear(case.columns, case.rows, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    made: dict[str, Any] = {"n_bits": case.n_bits, "lut_qspec": table(dtype=case.table)}
    if case.cluster_dim > 1:
        made["cluster_dim"] = case.cluster_dim
    if case.group is not None:
        made["granularity"] = grouped(axis=case.axis, group_size=case.group)
    module = library.ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": library.PalettizationSpec(**made)},
        enable_fast_kmeans_mode=case.cluster_dim == 1,
    )
    config = library.KMeansPalettizerConfig(global_config=module)
    palettizer = library.KMeansPalettizer(nn.Sequential(layer), config)
    inputs = (torch.zeros(1, case.columns),)
    start = time.process_time()
    model = palettizer.prepare(inputs)
    seconds = time.process_time() - start
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
    for case in CASES:
        if options.only not in str(case):
            continue
        weight = torch.randn(case.rows, case.columns, generator=torch.Generator().manual_seed(0))
        weight = 0.02 * weight
        found: list[list[Found]] = [[], []]
        for _ in range(options.rounds + 1):
            for side, one in zip(sides, found, strict=True):
                one.append(prepared(*side, weight, case))
        seconds, errors = ([min(row[i] for row in one[1:]) for one in found] for i in range(2))
        print(f"{case}: {seconds[0] / seconds[1]:.2f} of the time, "
              f"{errors[0] / errors[1]:.3f} of the error", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
