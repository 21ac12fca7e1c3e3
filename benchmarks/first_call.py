"""How long a first call takes, with no kernel compiled: of one build, or of several, interleaved.

    python benchmarks/first_call.py [PYTHON …] [--rounds 3] [--only demo w4-16bit]

Each run is a process of its own with an empty folder for numba's cache, then another one that
finds there what the first has compiled. ``command`` is ``palette demo`` as typed (it needs the
demo extra), whose kernels are compiled beside its start; ``demo`` the same model and palettes in
Python; the others palettize a layer of 1024 × 1024. Counted are the seconds of ``prepare()``, by
the clock and of this processor (of ``command`` by the clock, and all its processes): the least of
all rounds. PYTHON is an interpreter with another build, to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from typing import Any

SPECS: dict[str, dict[str, Any]] = {
    "w4": {},
    "w4-groups": {"granularity": {"type": "per_grouped_channel", "axis": 0, "group_size": 16}},
    "w4-16bit": {"dtype": "bfloat16"},
    "pairs": {"cluster_dim": 2},
    "int8-tables": {"lut_qspec": {"dtype": "int8"}},
    "lnq": {"algorithm": "lnq"},
}
CASES = ("command", "demo", *SPECS)

RUN = """
import json, sys, time
import torch
from palette_core import KMeansPalettizer, KMeansPalettizerConfig

case, spec = sys.argv[1], json.loads(sys.argv[2])
if case == "demo":
    from palette_core.demo.minilm import load_minilm, tokenize
    from palette_core.demo.sentences import SENTENCES
    model, inputs = load_minilm(), tokenize(SENTENCES)
    # as the preset w4_all, which not every build has
    def states(axis):
        groups = {"type": "per_grouped_channel", "axis": axis, "group_size": 16}
        return {"op_state_spec": {"weight": {"n_bits": 4, "granularity": groups}}}
    spec = {"global_config": {**states(0), "op_type_config": {"embedding": states(1)}}}
else:
    dtype = getattr(torch, spec.pop("dtype", "float32"))
    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(1024, 1024).to(dtype), (torch.randn(64, 1024, dtype=dtype),)
    spec = {"global_config": {"op_state_spec": {"weight": {"n_bits": 4, **spec}}}}
config = KMeansPalettizerConfig.from_dict({"kmeans_palettization_config": spec})
palettizer = KMeansPalettizer(model.eval(), config)
if case == "lnq":
    palettizer.calibrate([inputs])
clock, cpu = time.perf_counter(), time.process_time()
palettizer.prepare(inputs)
print(json.dumps([time.perf_counter() - clock, time.process_time() - cpu]))
"""


def seconds(python: str, case: str, cache: str) -> list[float]:
    """Return the seconds of one run, by the clock and of the processor."""
    if case == "command":
        return _command(python, cache)
    done = subprocess.run(
        [python, "-c", RUN, case, json.dumps(SPECS.get(case, {}))],
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _command(python: str, cache: str) -> list[float]:
    before = os.times()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, "-m", "palette_core", "demo", "--json"],
            env={**os.environ, "NUMBA_CACHE_DIR": cache},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            text=True,
        )
    after = os.times()
    spent = sum(after[2:4]) - sum(before[2:4])
    return [json.loads(done.stdout)["totals"]["prepare_seconds"], spent]


def main() -> None:
    """Print a line per case and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    given = parser.parse_args()
    builds = [sys.executable, *given.pythons]
    best: dict[Any, list[float]] = defaultdict(lambda: [float("inf")] * 2)
    for _ in range(given.rounds):
        for case in given.only:
            for build in builds:
                with tempfile.TemporaryDirectory() as cache:
                    for which in ("first", "again"):
                        took = seconds(build, case, cache)
                        key = case, build, which
                        best[key] = [min(pair) for pair in zip(best[key], took, strict=True)]
    print(f"{'case':12} {'first':>8} {'again':>8} {'of the processor':>18}  {'build':40} ratio")
    for case in given.only:
        for build in builds:
            first, again = best[case, build, "first"], best[case, build, "again"]
            by = 0 if case == "command" else 1
            ratio = first[by] / best[case, builds[0], "first"][by]
            print(
                f"{case:12} {first[0]:6.2f} s {again[0]:6.2f} s {first[1]:8.2f} {again[1]:7.2f} s"
                f"  {build[-40:]:40} {ratio:5.2f}"
            )


if __name__ == "__main__":
    main()
