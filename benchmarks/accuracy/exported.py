"""Whether a Core AI file of data-aware palettes computes what the torch model does.

    PALETTE_LOADERS=folder python benchmarks/accuracy/exported.py [--models effnet minilm]
        [--groups 16 0] [--bits 4] [--within 1e-5]

Every model is palettized with ``lnq`` in sequence, finalized, exported, and run in float32 on the
CPU on real inputs. Differences are the largest over all outputs, absolute and relative to the
largest output of the finalized torch model. The exit code is 1 where a relative one is above
``--within``. Needs the plug-in of Core AI and its runtime.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import Case, config_of, expected_warnings
from tasks import TASKS

# tasks.py has put the folder above on the path.
from export import flattened, run_coreai, weights_read_back  # isort: skip

from palette_core import KMeansPalettizer, KMeansPalettizerConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TASKS, default=["effnet", "minilm"])
    parser.add_argument("--groups", nargs="+", type=int, default=[16, 0])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--within", type=float, default=1e-5, help="of the largest output")
    parser.add_argument("--inputs", type=int, default=4, help="how many to run the file on")
    parser.add_argument("--limit", type=int, default=0, help="calibration batches, to try it out")
    parser.add_argument("--keep", type=Path, help="write the files to this folder and keep them")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    above = 0
    with tempfile.TemporaryDirectory() as temporary:
        for model in args.models:
            for group in args.groups:
                row = measured(model, group, args, args.keep or Path(temporary))
                show(row, args)
                above += not row["relative"] <= args.within  # NaN is above
    sys.exit(1 if above else 0)


def measured(model: str, group: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Palettize, export, run, and compare."""
    task = TASKS[model](0)
    torch.set_num_threads(args.threads)
    task = replace(task, batches=task.batches[: args.limit or None])
    # One row of each batch: the file takes inputs of one shape. Images come channels last, from
    # which torch.export makes operations that do not convert.
    inputs = [tuple(x[:1].contiguous() for x in batch) for batch in task.batches]
    inputs = [one for one in inputs if _shapes(one) == _shapes(inputs[0])][: args.inputs]
    case = Case(model, args.bits, group, "lnq, in sequence", 0)
    config = KMeansPalettizerConfig.from_dict(config_of(case, {"algorithm": "lnq"}))
    palettizer = KMeansPalettizer(task.model, config)
    started = time.perf_counter()
    with expected_warnings():
        palettizer.calibrate(task.batches, sequential=True)
        palettizer.prepare(task.batches[0], backend="coreai")
    seconds = time.perf_counter() - started
    finalized = palettizer.finalize(backend="coreai")
    path = palettizer.export(folder / f"{model}-{group}.aimodel", inputs[0], backend="coreai")
    absolute = largest = 0.0
    for one in inputs:
        with torch.no_grad():
            wanted = [x.numpy() for x in flattened(finalized(*one))]
        got = asyncio.run(run_coreai(path, one))
        for ours, theirs in zip(wanted, got, strict=True):
            absolute = float(np.maximum(absolute, np.abs(ours - theirs).max()))  # keeps a NaN
            largest = max(largest, float(np.abs(ours).max()))
    return {
        "model": model,
        "group": group,
        "inputs": len(inputs),
        "seconds": seconds,
        "absolute": absolute,
        "largest": largest,
        "relative": absolute / largest,
        **weights_read_back(finalized, path, "coreai"),
    }


def _shapes(inputs: tuple[Any, ...]) -> list[Any]:
    return [x.shape for x in inputs]


def show(row: dict[str, Any], args: argparse.Namespace) -> None:
    where = f"groups of {row['group']}" if row["group"] else "per tensor"
    said = "within" if row["relative"] <= args.within else "ABOVE"
    print(
        f"{row['model']:8s} {args.bits} bits {where:13s} {row['inputs']} inputs: largest output "
        f"{row['largest']:.4g}, largest difference {row['absolute']:.3g} absolute, "
        f"{row['relative']:.3g} relative ({said} {args.within:g}); weights equal "
        f"{row['weights_equal']}/{row['weights']}; palettized in {row['seconds']:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
