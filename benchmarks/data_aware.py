"""Two builds of palette_core side by side: ``lnq`` in sequence, in processor time.

    python benchmarks/data_aware.py CHECKOUT PYTHON [--only NAME …] [--pairs 3] [--threads 1]
    python benchmarks/data_aware.py --scaling [--only NAME …] [--pairs 3]

CHECKOUT holds the sources of the other build, PYTHON is the interpreter of an environment with its
libraries and plug-ins. Each run is a process of its own, in which a small net is palettized before
anything is measured, and the two builds take turns. Told are the medians of seconds of processor
time, by how much the other build takes longer, whether that is what was aimed at, resident memory
beyond the model, how often the model's blocks ran for each batch, and by how much the sum of
objectives differs: of SmolLM2 by up to 4 %, from rounding alone, which grows from block to block
(``same_objective.py`` gives both builds the same inputs). Beside them stand two floors: the time of
two passes over the batches, and that of one product of its inputs for each weight that is fed by
others. Of ``wide moments`` only the moments of the unchanged model are measured, less one pass over
the batches.

With ``--scaling``, this build alone on one thread and on two, in seconds of the clock: that needs
two cores with nothing else to do. The real models need what ``accuracy/tasks.py`` does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nets import NETS, Task, small
from torch import Tensor, nn

SPEC = {
    "n_bits": 3,
    "algorithm": "lnq",
    "granularity": {"type": "per_grouped_channel", "axis": 0, "group_size": 16},
}
CONFIG = {"kmeans_palettization_config": {"global_config": {"op_state_spec": {"weight": SPEC}}}}


def real(name: str) -> Callable[[], Task]:
    """Return what makes the task of that name of the accuracy benchmark."""

    def make() -> Task:
        sys.path.append(str(Path(__file__).parent / "accuracy"))
        import tasks

        task = tasks.TASKS[name](0)
        return task.model, list(task.batches)

    return make


CASES: dict[str, Callable[[], Task]] = {
    **NETS,
    "wide moments": NETS["wide"],
    **{name: real(name) for name in ("minilm", "effnet", "whisper", "smollm2")},
}

TARGETS = {
    "recogniser": 6.0,
    "wide moments": 4.0,
    "minilm": 3.0,
    "effnet": 3.0,
    "whisper": 3.0,
}
"""Times of the first build by times of this one that were aimed at."""

SCALING = {"smollm2": 1.7}
"""Times on one thread by times on two that were aimed at."""


def run(name: str) -> dict[str, float]:
    """Palettize one case with the build that is installed here, after a small one."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    palettized(*small(), sequential=True)
    torch.manual_seed(0)
    return palettized(*CASES[name](), sequential=not name.endswith("moments"))


def palettized(
    model: nn.Module, batches: list[tuple[Any, ...]], *, sequential: bool
) -> dict[str, float]:
    """Palettize a model, and return what is told of it; if not ``sequential``, of its moments."""
    from palette_core import KMeansPalettizer, KMeansPalettizerConfig

    palettizer = KMeansPalettizer(model.eval(), KMeansPalettizerConfig.from_dict(CONFIG))
    products = _seconds(lambda: _products(model, batches))
    with torch.no_grad():
        passes = 2 * _seconds(lambda: [model(*batch) for batch in batches])
    ran = [0]
    blocks = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: ran.__setitem__(0, ran[0] + 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    gathering = _seconds(lambda: palettizer.calibrate(batches, sequential=sequential))
    wall = time.perf_counter() - started
    started = time.perf_counter()
    seconds = _seconds(lambda: palettizer.prepare(batches[0], show_progress=False))
    wall = time.perf_counter() - started if sequential else wall
    assert palettizer.report is not None
    return {
        "seconds": seconds if sequential else gathering - passes / 2,
        "wall": wall,
        "passes": passes,
        "products": products,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "runs": ran[0] / len(blocks) / len(batches),
        "objective": sum(row.objective_after or 0.0 for row in palettizer.report.tensors),
    }


def _products(model: nn.Module, batches: list[tuple[Any, ...]]) -> None:
    """Multiply the input of each linear layer and convolution with itself, as it is, once."""

    def multiply(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        axis = -1 if isinstance(module, nn.Linear) else 1
        rows = args[0].movedim(axis, 0).flatten(1)
        rows @ rows.T

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    hooks = [m.register_forward_pre_hook(multiply) for m in model.modules() if type(m) in kinds]
    with torch.no_grad():
        for batch in batches:
            model(*batch)
    for hook in hooks:
        hook.remove()


def _seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def measured(python: str, sources: Path, name: str, threads: int) -> dict[str, float]:
    """Run a case in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(sources), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
    }
    command = [python, __file__, "--run", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {key: statistics.median(each[key] for each in runs) for key in runs[0]}


def verdict(ratio: float, target: float | None) -> str:
    """Return a ratio with what was aimed at."""
    if target is None:
        return f"{ratio:>7.2f}{'':>14}"
    return f"{ratio:>7.2f}{'met' if ratio >= target else 'MISSED':>8} {f'({target:g}×)':<5}"


def compare(options: argparse.Namespace) -> None:
    """Print two builds side by side."""
    builds = {
        "other": (options.python, options.checkout / "src"),
        "this": (sys.executable, Path(__file__).parents[1] / "src"),
    }
    print(
        f"{'case':<13}{'other s':>9}{'this s':>9}{'ratio':>7}{'target':>14}{'2 passes':>10}"
        f"{'products':>10}{'other MB':>10}{'this MB':>9}{'runs':>12}{'objective':>11}"
    )
    for name in options.only:
        found: dict[str, list[dict[str, float]]] = {build: [] for build in builds}
        for _ in range(options.pairs):
            for build, (python, sources) in builds.items():
                found[build].append(measured(python, sources, name, options.threads))
        other, this = medians(found["other"]), medians(found["this"])
        print(
            f"{name:<13}{other['seconds']:>9.2f}{this['seconds']:>9.2f}"
            f"{verdict(other['seconds'] / this['seconds'], TARGETS.get(name))}"
            f"{this['passes']:>10.2f}"
            f"{this['products']:>10.2f}{other['megabytes']:>10.0f}{this['megabytes']:>9.0f}"
            f"{other['runs']:>6.1f}{this['runs']:>6.1f}"
            f"{this['objective'] / other['objective'] - 1:>+11.2%}",
            flush=True,
        )


def scale(options: argparse.Namespace) -> None:
    """Print this build on one thread beside two."""
    print(f"{'case':<13}{'1 thread':>10}{'2 threads':>11}{'ratio':>7}{'target':>14}")
    sources = Path(__file__).parents[1] / "src"
    for name in options.only:
        found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
        for _ in range(options.pairs):
            for threads, runs in found.items():
                runs.append(measured(sys.executable, sources, name, threads))
        one, two = (medians(found[threads])["wall"] for threads in (1, 2))
        told = verdict(one / two, SCALING.get(name))
        print(f"{name:<13}{one:>9.2f}s{two:>10.2f}s{told}", flush=True)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, nargs="?")
    parser.add_argument("python", nargs="?", default=sys.executable)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CASES,
        default=["stages", "recogniser", "bert", "wide", "wide moments"],
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scaling", action="store_true", help="one thread beside two")
    parser.add_argument("--run", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options.run)))
        return
    if options.scaling:
        scale(options)
        return
    if options.checkout is None:
        parser.error("CHECKOUT is missing: the sources of the build to compare with")
    compare(options)


if __name__ == "__main__":
    main()
