"""Two builds of palette_core side by side: what ``lnq`` reaches when both get the same inputs.

    python benchmarks/same_objective.py CHECKOUT PYTHON [--only smollm2 minilm …]

CHECKOUT holds the sources of the other build, PYTHON is the interpreter of an environment with its
libraries and plug-ins. In sequence a weight's inputs depend on the palettes before it, and what one
rounding does to the first of them grows from block to block: with one weight of the first layer
changed by a millionth, one build alone differs from itself by 4 % in SmolLM2's objective and
perplexity. So every weight gets the inputs of the unchanged model here, and the inputs are the
same in both builds. Told are the sum of the objectives of both, by how much it differs, by how
much that of a single weight does at most, how many weights became the same up to 1e-5, and of real
models the measure on data that no batch is from.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from data_aware import CASES, CONFIG
from torch import nn

SAME = 1e-5  # relative, of decoded weights


def run(name: str, path: str) -> dict[str, Any]:
    """Palettize one case with the build that is installed here; keep its weights in a file."""
    from palette_core import KMeansPalettizer, KMeansPalettizerConfig

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, batches, judge = _task(name)
    palettizer = KMeansPalettizer(model.eval(), KMeansPalettizerConfig.from_dict(CONFIG))
    palettizer.calibrate(batches)
    palettized = palettizer.prepare(batches[0], show_progress=False)
    assert palettizer.report is not None
    rows = palettizer.report.tensors
    decoded = {k: v.detach() for k, v in _weights(palettized, [row.name for row in rows]).items()}
    torch.save(decoded, path)
    with torch.no_grad():
        measure = None if judge is None else judge(palettized)
    objectives = {r.name: r.objective_after for r in rows if r.objective_after}
    return {"objectives": objectives, "measure": measure}


def _task(name: str) -> tuple[nn.Module, list[Any], Any]:
    sys.path.append(str(Path(__file__).parent / "accuracy"))
    if name in ("minilm", "effnet", "whisper", "smollm2"):
        import tasks

        task = tasks.TASKS[name](0)
        return task.model, list(task.batches), task.judge
    return *CASES[name](), None


def _weights(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    found = {}
    for name in names:
        owner, _, own = name.rpartition(".")
        found[name] = getattr(model.get_submodule(owner), own)
    return found


def _measured(python: str, sources: Path, name: str, path: str) -> dict[str, Any]:
    paths = os.pathsep.join([str(sources), os.environ.get("PYTHONPATH", "")])
    command = [python, __file__, "--run", name, path]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, nargs="?")
    parser.add_argument("python", nargs="?", default=sys.executable)
    parser.add_argument("--only", nargs="+", choices=CASES, default=["bert", "minilm", "smollm2"])
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(*options.run)))
        return
    if options.checkout is None:
        parser.error("CHECKOUT is missing: the sources of the build to compare with")
    builds = [
        (options.python, options.checkout / "src"),
        (sys.executable, Path(__file__).parents[1] / "src"),
    ]
    print(
        f"{'case':<10}{'other':>12}{'this':>12}{'sum':>10}{'at most':>10}{'same weights':>14}"
        f"{'other measure':>15}{'this':>10}{'ratio':>10}"
    )
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            paths = [f"{folder}/{number}.pt" for number in range(2)]
            other, this = (
                _measured(*build, name, path) for build, path in zip(builds, paths, strict=True)
            )
            a, b = (torch.load(path) for path in paths)
        same = sum(float((a[n] - b[n]).norm()) <= SAME * float(a[n].norm()) for n in a)
        before, after = other["objectives"], this["objectives"]
        sums = sum(before.values()), sum(after.values())
        most = max(abs(after[n] / before[n] - 1) for n in before)
        line = f"{name:<10}{sums[0]:>12.5g}{sums[1]:>12.5g}{sums[1] / sums[0] - 1:>+10.4%}"
        line += f"{most:>10.4%}{same:>8} of {len(a):<3}"
        if this["measure"] is not None:
            ratio = this["measure"] / other["measure"]
            line += f"{other['measure']:>14.4f}{this['measure']:>10.4f}{ratio - 1:>+10.4%}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
