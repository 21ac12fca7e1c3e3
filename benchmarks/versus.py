"""Two builds of palette_core side by side: medians of the cases of ``run.py``, interleaved.

    python benchmarks/versus.py CHECKOUT PYTHON [--pairs 7] [--only scalar|vector|models] [--quick]

CHECKOUT holds the sources of the other build, PYTHON is the interpreter of an environment that
has it installed. The two take turns and the one that begins changes from pair to pair, so that
a machine that is busy for a while slows both. Ends with exit code 1 where a median is past
``--most`` times the other's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path

from clustering import contenders
from clustering.contenders import Case, measured
from run import SUITES, chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("python", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", choices=[suite for suite in SUITES if suite != "latency"])
    parser.add_argument("--quick", action="store_true", help="smaller weights, no SmolLM2")
    parser.add_argument("--most", type=float, default=1.1, help="times the other build's median")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=360, help="seconds for one process")
    options = parser.parse_args()
    os.environ["PALETTE_BENCH_THREADS"] = str(options.threads)
    os.environ["NUMBA_NUM_THREADS"] = str(options.threads)
    builds = {
        "this": (sys.executable, contenders.__file__),
        "other": (
            str(options.python),
            str(options.checkout / "benchmarks" / "clustering" / "contenders.py"),
        ),
    }
    suites = [options.only] if options.only else [suite for suite in SUITES if suite != "latency"]
    print(f"{'case':<42}{'this s':>10}{'other s':>10}{'ratio':>8}{'same error':>12}")
    slower = 0
    for suite in suites:
        for case in chosen(suite, options.quick):
            slower += not compared(case, builds, options.pairs, options.most, options.limit)
    return 1 if slower else 0


def compared(
    case: Case, builds: dict[str, tuple[str, str]], pairs: int, most: float, limit: float
) -> bool:
    """Print a row; return whether this build's median is at most ``most`` times the other's."""
    seconds: dict[str, list[float]] = {name: [] for name in builds}
    errors: dict[str, float] = {}
    for pair in range(pairs):
        order = list(builds) if pair % 2 else list(reversed(builds))
        for name in order:
            python, script = builds[name]
            run = measured("ours", case, budget=2, limit=limit, python=python, script=script)
            if "failed" in run:
                print(f"{case.name:<42} {name} failed: {run['failed']}", flush=True)
                return False
            seconds[name].append(run["seconds"])
            errors[name] = run["error"]
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    ratio = medians["this"] / medians["other"]
    same = "yes" if errors["this"] == errors["other"] else "no"
    print(
        f"{case.name:<42}{medians['this']:>10.4f}{medians['other']:>10.4f}{ratio:>8.2f}{same:>12}",
        flush=True,
    )
    return ratio <= most


if __name__ == "__main__":
    sys.exit(main())
