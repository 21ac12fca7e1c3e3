"""Palettes with and without data, beside NNCF's and coreai-opt's: error of weights, and of models.

    PALETTE_LOADERS=folder python benchmarks/accuracy/data_free.py [--models minilm effnet]
        [--bits 4 3] [--rows 'blocks of 64' 'CB4, blocks of 64'] [--seeds 0 1 2] [--no-judging]
        [--results data_free.json] [--kept] [--markdown data_free.md]

Every method palettizes the same weights, and counts as many bits for scales as it stores: one of
16 for each block, or 32 where float16 does not hold it. A block is as large as is asked for, or
the largest smaller number that divides the inputs of a channel. *CB4* is the fixed table of NNCF's
mode of that name with factors from the largest magnitudes, in our own words; ``--check`` says
whether NNCF, where it is installed, makes the same of a weight. *scales of 8 bits* are shares of
one float per channel; *symmetric* and *with zero* tables are fitted like the others, and then held
to their form. *On noise* is calibrated without data: see `palettes.noise`.

Figures are kept in the results file, where one is named, and not measured again, so that a run goes
on where it was interrupted; ``--kept`` makes the tables of what there is. Seeds choose what is
calibrated on, what noise is drawn, and, of EfficientNet and Whisper, what is judged on; where none
of these counts, the first one is all.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from figures import Row, kept, read
from methods import _TYPES
from palettes import (
    Given,
    Method,
    fitted,
    noise,
    of_rows,
    ours,
    symmetric,
    with_zero,
    within,
)
from peers import cb4, check, coreai_opt, nncf_adaptive
from tasks import TASKS, Task
from torch import nn

from palette_core import QuantizationSpec

_GROUPS = {"type": "per_grouped_channel", "group_size": 16}
_JUDGED_BY_SEED = ("whisper", "effnet")


@dataclass(frozen=True)
class How:
    """A row of the table.

    Attributes:
        method: that palettizes.
        by_seed: whether its palettes depend on what a seed chooses.
        needs: a package.
        bits: of an index that it is of, or any.
    """

    method: Method
    by_seed: bool = False
    needs: str | None = None
    bits: int | None = None


ROWS: dict[str, How] = {
    "one table": How(ours()),
    "groups of 16": How(ours(granularity=_GROUPS)),
    "coreai-opt, groups of 16": How(coreai_opt(16), needs="coreai_opt"),
    "per channel": How(ours(enable_per_channel_scale=True)),
    "CB4, blocks of 128": How(of_rows(128, cb4), bits=4),
    "NNCF's ADAPTIVE_CODEBOOK, blocks of 128": How(nncf_adaptive(128), True, "nncf"),
    "blocks of 128": How(ours(block=128)),
    "CB4, blocks of 64": How(of_rows(64, cb4), bits=4),
    "NNCF's ADAPTIVE_CODEBOOK, blocks of 64": How(nncf_adaptive(64), True, "nncf"),
    "blocks of 64": How(ours(block=64)),
    "blocks by allocate, in the bits of 64": How(within(64)),
    "lnq in sequence on noise, blocks of 64": How(
        ours(algorithm="lnq", block=64, inputs=noise), True
    ),
    "lnq in sequence, groups of 16": How(ours(algorithm="lnq", granularity=_GROUPS), True),
    "lnq in sequence, per channel": How(ours(algorithm="lnq", enable_per_channel_scale=True), True),
    "lnq in sequence, blocks of 64": How(ours(algorithm="lnq", block=64), True),
}
OTHERS: dict[str, How] = {
    "CB4, blocks of 48": How(of_rows(48, cb4), bits=4),
    "blocks of 112": How(ours(block=112)),
    "blocks of 64, range": How(ours(block=64, scale_fit="range")),
    "blocks of 32": How(ours(block=32)),
    "blocks of 64, int8 table": How(ours(block=64, lut_qspec=QuantizationSpec(dtype=torch.int8))),
    "blocks of 64, simply": How(of_rows(64, fitted())),
    "blocks of 64, symmetric table": How(of_rows(64, fitted(symmetric))),
    "blocks of 64, table with zero": How(of_rows(64, fitted(with_zero))),
    "blocks of 32, scales of 8 bits": How(of_rows(32, fitted(narrow=True))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--rows", nargs="+", choices=ROWS | OTHERS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--no-judging", action="store_true", help="errors of weights alone")
    parser.add_argument("--results", type=Path, help="where figures are kept, and taken from")
    parser.add_argument("--kept", action="store_true", help="measure nothing that is not kept yet")
    parser.add_argument("--markdown", type=Path, help="write a table of each model")
    parser.add_argument("--check", action="store_true", help="compare CB4 with NNCF, and end")
    args = parser.parse_args()
    if args.check:
        return check()
    if args.kept and not args.results:
        parser.error("--kept wants --results")
    rows = [row for name in args.models for row in _rows(args, name)]
    if args.markdown:
        tables = [_table(name, rows, args.bits, len(args.seeds)) for name in args.models]
        args.markdown.write_text("\n".join(tables))
    return None


def _rows(args: argparse.Namespace, name: str) -> list[Row]:
    loaded: dict[int, Task] = {}

    def task(seed: int) -> Task:
        if seed not in loaded:
            loaded.clear()  # one at a time: models are large
            loaded[seed] = TASKS[name](seed)
        return loaded[seed]

    found = []
    for seed in args.seeds:
        for case in _cases(args, name, seed):
            about = {"model": name, "seed": seed, **case}

            def measure(about: Row = about) -> Row:
                return {**about, **_measured(task(about["seed"]), about, not args.no_judging)}

            key = " | ".join(str(part) for part in about.values())
            if args.kept and key not in read(args.results):
                continue
            row = kept(args.results, key, measure) if args.results else measure()
            assert row is not None
            print(_said(row), flush=True)
            found.append(row)
    return found


def _cases(args: argparse.Namespace, name: str, seed: int) -> Iterator[Row]:
    """Yield methods and bits of one seed, of which the first one alone is for what needs none."""
    first, judged = seed == args.seeds[0], name in _JUDGED_BY_SEED
    if (first or judged) and not args.no_judging:
        yield {"row": "dense", "bits": 32}
    for row in args.rows:
        how = (ROWS | OTHERS)[row]
        if not (first or judged or how.by_seed):
            continue
        if how.needs and importlib.util.find_spec(how.needs) is None:
            print(f"no {row}: {how.needs} is not installed")
            continue
        yield from ({"row": row, "bits": b} for b in args.bits if how.bits in (None, b))


def _measured(task: Task, about: Row, judging: bool) -> Row:
    if about["row"] == "dense":
        return {"measure": task.measure, "value": task.judge(task.model)}
    name = about["model"]
    model = copy.deepcopy(task.model)
    modules = dict(_palettized(model, name))
    before = {n: m.weight.detach().clone() for n, m in modules.items()}
    start = time.process_time()
    method = (ROWS | OTHERS)[about["row"]].method
    after, size = method(Given(model, task, modules, about["bits"], about["seed"]))
    seconds = time.process_time() - start
    off = sum(float((after[n] - w).double().square().sum()) for n, w in before.items())
    norm = sum(float(w.double().square().sum()) for w in before.values())
    count = sum(w.numel() for w in before.values())
    found = {"bpw": size / count, "error": math.sqrt(off / norm), "seconds": seconds}
    if judging:
        judged = copy.deepcopy(task.model)
        with torch.no_grad():
            for n, module in _palettized(judged, name):
                module.weight.copy_(after[n])
        found["value"] = task.judge(judged)
    return {**found, "measure": task.measure}


def _palettized(model: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    wanted = {text.rpartition(".")[2] for text in _TYPES[name]}
    for path, module in model.named_modules():
        if type(module).__name__ in wanted:
            yield path, module


def _said(row: Row) -> str:
    head = f"{row['model']:8s} seed {row['seed']} {row['bits']:2d} bits {row['row']:40s}"
    value = f"{row['measure']} {row['value']:.4f}" if "value" in row else ""
    if row["row"] == "dense":
        return f"{head} {value}"
    return (
        f"{head} {row['bpw']:6.3f} bpw  error {row['error']:.4f}  {value}"
        f"  {row['seconds']:.0f} s of processor time"
    )


# --- a table ------------------------------------------------------------------------------------


def _table(name: str, rows: list[Row], bits: list[int], seeds: int) -> str:
    """Return a table of one model, in Markdown: means over seeds, with the least and largest."""
    own = [row for row in rows if row["model"] == name]
    methods = dict.fromkeys(row["row"] for row in own if row["row"] != "dense")
    measure = next((row["measure"] for row in own), "")
    dense = [row["value"] for row in own if row["row"] == "dense"]
    title = f"{name}, {measure}" + (f" (dense {_spread(dense)})" if dense else "")
    head = [title, *(f"{b} bits: {what}" for b in bits for what in ("bits", "error", measure))]
    lines = [head, ["---"] * len(head)]
    for method in methods:
        line = [method]
        for width in bits:
            cell = [row for row in own if (row["row"], row["bits"]) == (method, width)]
            if not cell:
                line += ["", "", ""]
                continue
            line += [f"{mean(row['bpw'] for row in cell):.2f}"]
            line += [f"{mean(row['error'] for row in cell):.4f}"]
            line += [_of_seeds(name, method, cell, seeds)]
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _of_seeds(name: str, method: str, cell: list[Row], seeds: int) -> str:
    """Return the mean and range of a cell, and its seeds where some that count are missing."""
    said = _spread([row["value"] for row in cell if "value" in row])
    by_seed = name in _JUDGED_BY_SEED or (ROWS | OTHERS)[method].by_seed
    own = sorted(row["seed"] for row in cell)
    if not said or not by_seed or len(own) == seeds:
        return said
    return f"{said}, seed{'s' * (len(own) > 1)} {' and '.join(map(str, own))}"


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    least, most, middle = (_number(of(values)) for of in (min, max, mean))
    return middle if least == most else f"{middle} ({least}–{most})"


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
