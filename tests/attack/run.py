"""The attacks of this folder at their full counts; the tests beside it run a few of each.

    python tests/attack/run.py [NAME ...] [--count N] [--seed S]

Prints what became of the cases, and every case that broke the promise; exit code 1 if any did.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "helpers"))  # what tests of several rooms share

import file_attack
import folder_attack
import hostile_attack
import interrupt_attack
import mutant_attack
import worker_attack
import yaml_attack

ATTACKS = {
    "yaml": (yaml_attack.attack, 10_000),
    "interrupts": (interrupt_attack.attack, 2_000),
    "kills": (file_attack.kills, 1_000),
    "full-disks": (file_attack.full_disks, 1_000),
    "mutants": (mutant_attack.attack, 20_000),
    "checkpoint-folders": (folder_attack.mutants, 4_000),
    "checkpoint-kills": (folder_attack.kills, 300),
    "block-kills": (folder_attack.block_kills, 100),
    "folders": (worker_attack.shared_folders, 650),
    "plug-ins": (hostile_attack.attack, 200),
    "workers": (worker_attack.workers_that_fail, 100),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*ATTACKS, []], metavar="NAME")
    parser.add_argument("--count", type=int, help="cases of each, instead of the full count")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    broken = 0
    for name in arguments.names or ATTACKS:
        attack, count = ATTACKS[name]
        started = time.perf_counter()
        outcome = attack(arguments.count or count, arguments.seed)
        kinds = ", ".join(f"{number} {kind}" for kind, number in outcome.counts.most_common())
        seconds = time.perf_counter() - started
        print(f"{name}: {kinds}; {len(outcome.broken)} broken; {seconds:.0f} s")
        for case in outcome.broken[:20]:
            print(f"  {case}")
        broken += len(outcome.broken)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
