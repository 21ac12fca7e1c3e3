"""How long ``palette --help`` takes to answer, as a share of ``python -c "import torch"``.

    python benchmarks/startup.py [--rounds 7] [--before PYTHON]

Rounds are interleaved, so that a machine that is busy for a while slows all alike; of each command
the median counts. ``--before`` is the interpreter of an environment with another state of this
project, to compare with. A plain start of Python is measured too, as what nothing can be below.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "palette --version": ("-m", "palette_core", "--version"),
    "palette --help": ("-m", "palette_core", "--help"),
    "import palette_core.plugins": ("-c", "import palette_core.plugins"),
}


def seconds(python: str, arguments: tuple[str, ...]) -> float:
    start = time.perf_counter()
    subprocess.run([python, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(pythons: dict[str, str], rounds: int) -> dict[tuple[str, str], float]:
    cases = [(state, name) for state in pythons for name in COMMANDS]
    taken: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for _ in range(rounds + 1):
        for state, name in cases:
            taken[state, name].append(seconds(pythons[state], COMMANDS[name]))
    return {case: statistics.median(times[1:]) for case, times in taken.items()}  # first: cold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", help="interpreter with another state of the project")
    given = parser.parse_args()
    pythons = {"now": sys.executable} | ({"before": given.before} if given.before else {})
    found = measure(pythons, given.rounds)
    print(f"{'command':30}" + "".join(f"{state:>22}" for state in pythons))
    for name in COMMANDS:
        cells = []
        for state in pythons:
            share = found[state, name] / found[state, "import torch"]
            cells.append(f"{found[state, name]:9.3f} s {share:7.2f} ×")
        print(f"{name:30}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
