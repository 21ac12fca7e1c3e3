"""What palettes cost in quality: models by bits, granularity and method, in one table.

    PALETTE_LOADERS=folder python benchmarks/accuracy/run.py [--models minilm effnet]
        [--bits 4 3 2] [--groups 16 0] [--methods plain gptq lnq] [--seeds 1]
        [--results accuracy.json] [--plot accuracy.png]

Groups of 0 are one table per tensor. Every figure is kept in the results file and not measured
again. Calibration data are apart from what a model is judged on (see ``tasks.py``). Methods that
need what is not installed (coreai-opt) are left out, with a word.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from figures import kept, plot, said, table
from methods import METHODS, Case, missing, palettized
from tasks import LABELLED, TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3, 2])
    parser.add_argument("--groups", nargs="+", type=int, default=[16, 0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("accuracy.json"))
    parser.add_argument("--plot", type=Path, help="draw the table; needs matplotlib")
    parser.add_argument("--markdown", type=Path, help="write the table")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for method in args.methods:
        if reason := missing(method):
            print(f"only kept figures of {method}: {reason}")
    rows = []
    for case in _cases(args):
        row = kept(args.results, case.key, lambda case=case: _measured(case, args))
        if row is not None:
            print(said(row), flush=True)
            rows.append(row)
    table(rows, args.markdown)
    if args.plot:
        plot(rows, args.plot)


def _cases(args: argparse.Namespace) -> list[Case]:
    cases = []
    for model in args.models:
        for seed in range(args.seeds):
            for method in args.methods:
                if METHODS[method] is None:
                    cases.append(Case(model, 32, 0, method, seed))
                    continue
                cases += [Case(model, b, g, method, seed) for b in args.bits for g in args.groups]
    return cases


def _measured(case: Case, args: argparse.Namespace) -> dict[str, Any] | None:
    how = METHODS[case.method] or {}
    if missing(case.method):
        return None
    if how.get("tuned") == "labels" and case.model not in LABELLED:
        print(f"{case.model}: has no labels for {case.method!r}")
        return None
    return {**asdict(case), **measure(case, args.threads, args.results.with_suffix(""))}


def measure(case: Case, threads: int, folder: Path) -> dict[str, Any]:
    """Palettize and judge one case; ``folder`` is for what allocations keep."""
    task = TASKS[case.model](case.seed)
    torch.set_num_threads(threads)
    about = {"measure": task.measure, "lower_is_better": task.lower_is_better}
    if METHODS[case.method] is None:
        return {"bpw": 32.0, "value": task.judge(task.model), "seconds": 0.0, **about}
    started = time.perf_counter()
    model, bpw = palettized(case, task, folder)
    seconds = time.perf_counter() - started
    row = {"bpw": bpw, "value": task.judge(model), "seconds": seconds, **about}
    return row if task.divergence is None else {**row, "divergence": task.divergence(model)}


if __name__ == "__main__":
    main()
