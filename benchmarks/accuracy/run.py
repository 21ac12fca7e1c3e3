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
import contextlib
import importlib.util
import json
import logging
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tasks import TASKS, Task
from torch import nn
from torch.nn.utils import parametrize
from tune import teacher, tuned

METHODS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "coreai-opt": {"peer": True},
    "coreai-opt, sensitive": {"peer": True, "sensitive": True},
    "plain": {},
    "fisher": {"sensitive": True},
    "gptq": {"algorithm": "gptq"},
    "lnq": {"algorithm": "lnq"},
    "gptq, in sequence": {"algorithm": "gptq", "sequential": True},
    "lnq, in sequence": {"algorithm": "lnq", "sequential": True},
    "lnq, in sequence, tuned": {"algorithm": "lnq", "sequential": True, "tuned": True},
    "lnq, in sequence, guided": {"algorithm": "lnq", "sequential": True, "guided": True},
    "lnq, in sequence, per-channel scale": {
        "algorithm": "lnq",
        "sequential": True,
        "scale": True,
    },
}


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    model: str
    bits: int
    group: int
    method: str
    seed: int

    @property
    def key(self) -> str:
        return " | ".join(str(part) for part in asdict(self).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3, 2])
    parser.add_argument("--groups", nargs="+", type=int, default=[16, 0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("accuracy.json"))
    parser.add_argument("--plot", type=Path, help="draw the table; needs matplotlib")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for method in list(args.methods):
        if reason := missing(method):
            print(f"without {method}: {reason}")
            args.methods.remove(method)
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    for case in _cases(args):
        if case.key not in results:
            results[case.key] = {**asdict(case), **measure(case, args.threads)}
            args.results.write_text(json.dumps(results, indent=1))
        show(results[case.key])
    if args.plot:
        plot(list(results.values()), args.plot)


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


def measure(case: Case, threads: int) -> dict[str, Any]:
    """Palettize and judge one case."""
    task = TASKS[case.model](case.seed)
    torch.set_num_threads(threads)
    how = METHODS[case.method]
    if how is None:
        return {"bpw": 32.0, "value": task.judge(task.model), "seconds": 0.0, **_about(task)}
    started = time.perf_counter()
    model, bpw = (_peer if how.get("peer") else _ours)(case, how, task)
    seconds = time.perf_counter() - started
    row = {"bpw": bpw, "value": task.judge(model), "seconds": seconds, **_about(task)}
    return row if task.divergence is None else {**row, "divergence": task.divergence(model)}


def _ours(case: Case, how: dict[str, Any], task: Task) -> tuple[nn.Module, float]:
    from palette_core import KMeansPalettizer, KMeansPalettizerConfig

    config = KMeansPalettizerConfig.from_dict(_config(case, how))
    dense = teacher(task.model) if how.get("tuned") else None
    palettizer = KMeansPalettizer(task.model, config)
    with expected_warnings():
        if "algorithm" in how:
            palettizer.calibrate(
                task.batches,
                sequential=how.get("sequential", False),
                loss=task.loss if how.get("guided") else None,
            )
        model = palettizer.prepare(task.batches[0])
        if how.get("sensitive"):
            _weigh(palettizer, task)
        if dense is not None:
            tuned(palettizer, model, dense, task)
    assert palettizer.report is not None
    return model, palettizer.report.bits_per_palettized_weight


def _peer(case: Case, how: dict[str, Any], task: Task) -> tuple[nn.Module, float]:
    import coreai_opt.palettization as peer
    import coreai_opt.palettization.spec as grain

    logging.getLogger("coreai_opt").setLevel(logging.ERROR)
    granularity = (
        grain.PerGroupedChannelGranularity(axis=0, group_size=case.group)
        if case.group
        else grain.PerTensorGranularity()
    )
    spec = peer.PalettizationSpec(n_bits=case.bits, granularity=granularity)
    wanted = peer.ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    layers = nn.Linear | nn.Conv1d | nn.Conv2d
    # Its default are the operations that ours palettizes here; a tied embedding stays dense.
    names = {
        name: wanted if isinstance(module, layers) else None
        for name, module in task.model.named_modules()
        if name and (isinstance(module, layers) or not list(module.children()))
    }
    bits, plan = planned_bits(case, task)
    config = peer.KMeansPalettizerConfig(global_config=None, module_name_configs=names)
    palettizer = peer.KMeansPalettizer(task.model, config)
    model = palettizer.prepare(task.batches[0])
    if how.get("sensitive"):
        _weigh(palettizer, task)
    if different := peer_palettized(model) ^ plan:
        raise RuntimeError(f"coreai-opt and we palettize different weights: {sorted(different)}")
    return model, bits


def planned_bits(case: Case, task: Task) -> tuple[float, set[str]]:
    """Return bits per palettized weight as our plan counts them, and the names of those weights.

    It holds for coreai-opt too, whose indices and tables are of the same number and dtypes.
    """
    from palette_core import KMeansPalettizer, KMeansPalettizerConfig

    config = KMeansPalettizerConfig.from_dict(_config(case, {}))
    with expected_warnings():
        plan = KMeansPalettizer(task.model, config).make_plan(task.batches[0])
    bits = sum(
        math.prod(tensor.layout.index_shape) * case.bits
        + math.prod(tensor.layout.lut_shape(2**case.bits)) * tensor.dtype.itemsize * 8
        for tensor in plan
    )
    return bits / sum(math.prod(t.shape) for t in plan), {t.name for t in plan}


@contextlib.contextmanager
def expected_warnings() -> Iterator[None]:
    """Be silent on groups that do not divide a layer, not on layers that get k-means instead."""
    from palette_core.errors import PaletteWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaletteWarning)
        warnings.filterwarnings("default", ".*palettized by k-means", PaletteWarning)
        yield


def peer_palettized(model: nn.Module) -> set[str]:
    """Return the names of weights that coreai-opt has palettized."""
    return {
        f"{name}.{state}"
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for state, chain in module.parametrizations.items()
        if not all(step.is_disabled() for step in chain)
    }


def _weigh(palettizer: Any, task: Task) -> None:
    """Cluster again with squared gradients as importance."""
    with palettizer.calibration_mode(loss_fn=task.loss) as calibrating:
        for batch in task.batches:
            calibrating.step(task.model(*batch), batch)


def missing(method: str) -> str | None:
    """Say what a method needs that is not here."""
    how = METHODS[method] or {}
    if how.get("peer"):
        return None if importlib.util.find_spec("coreai_opt") else "coreai-opt is not installed"
    if how.get("sensitive"):
        from palette_core import KMeansPalettizer

        if not hasattr(KMeansPalettizer, "calibration_mode"):
            return "this palette_core has no calibration_mode"
    return None


def _about(task: Task) -> dict[str, Any]:
    return {"measure": task.measure, "lower_is_better": task.lower_is_better}


def _config(case: Case, how: dict[str, Any]) -> dict[str, Any]:
    granularity: dict[str, Any] = {"type": "per_tensor"}
    if case.group:
        granularity = {"type": "per_grouped_channel", "group_size": case.group}
    spec = {
        "n_bits": case.bits,
        "granularity": granularity,
        "algorithm": how.get("algorithm"),
        "enable_per_channel_scale": how.get("scale", False),
        "training_strategy": "tables" if how.get("tuned") else "frozen",
    }
    types = {name: {"op_state_spec": {"weight": spec}} for name in _TYPES[case.model]}
    return {"kmeans_palettization_config": {"global_config": None, "module_type_configs": types}}


_TYPES = {
    "smollm2": ("torch.nn.Linear",),
    "whisper": ("torch.nn.Linear", "torch.nn.Conv1d"),
    "minilm": ("torch.nn.Linear",),
    "effnet": ("torch.nn.Linear", "efficientnet_lite_pytorch.utils.Conv2dStaticSamePadding"),
}


def show(row: dict[str, Any]) -> None:
    where = f"groups of {row['group']}" if row["group"] else "per tensor"
    print(
        f"{row['model']:8s} {row['bits']:2d} bits {where:13s} {row['method']:36s} "
        f"{row['bpw']:6.3f} bpw {row['measure']:13s} {row['value']:10.4f} {row['seconds']:7.1f} s"
        f"  seed {row['seed']}"
        + (f"  divergence {row['divergence']:.4f}" if "divergence" in row else ""),
        flush=True,
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw measure against bits per weight, one panel per model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = pyplot.subplots(1, len(models), figsize=(5 * len(models), 4), squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        own = [row for row in rows if row["model"] == model]
        for method in dict.fromkeys(row["method"] for row in own):
            points = sorted((r["bpw"], r["value"]) for r in own if r["method"] == method)
            if method == "dense":
                panel.axhline(points[0][1], color="grey", linestyle=":", label="dense")
            else:
                panel.plot(*zip(*points, strict=True), "o-", label=method)
        panel.set(title=model, xlabel="bits per palettized weight", ylabel=own[0]["measure"])
        if own[0]["lower_is_better"]:
            panel.set_yscale("log")
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
