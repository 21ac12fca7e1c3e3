"""Mixed bits: what a budget buys, beside coreai-opt's uniform bits.

    PALETTE_LOADERS=folder python benchmarks/accuracy/mixed.py [--models minilm effnet]
        [--target 3.5] [--curve 2.5 3 3.5 4 5] [--metric hessian] [--candidates 2 3 4 6 8]
        [--groups 16 0] [--results mixed.json] [--uniform accuracy.json] [--plot mixed.png]

``allocate`` gives every weight one of the candidates, so that the average is the target; its config
is written (YAML), read back, and palettized with ``lnq`` in sequence. A target counts everything
over the palettized weights: indices, tables, scales. What indices alone take is shown too, as
``index``. The least target of a curve is the smallest candidate for every weight.

Uniform bits of coreai-opt are read from ``run.py``'s results, and measured into them where they are
missing and coreai-opt is installed. At three points what the metric predicts is held against what
is lost on data apart, by the model as it was predicted: its weights palettized apart from each
other. Every figure is kept in the results file and not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import run as uniform
import torch
from tasks import TASKS, Task
from torch import Tensor, nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig, allocate
from palette_core.allocation import Allocation

LEAST = 0.0
"""The target that stands for the smallest candidate everywhere."""

PEERS = tuple(name for name, how in uniform.METHODS.items() if (how or {}).get("peer"))
PEER_BITS = (2, 3, 4, 6)

# Where a metric's unit is the growth of the measure's loss. Divergences of logits are in nats, as
# cross-entropies are; fisher's loss is one for MiniLM in name only, see ``tasks.py``.
LOSSES = {
    ("fisher", "smollm2"),
    ("fisher", "whisper"),
    ("fisher", "effnet"),
    ("output", "smollm2"),
    ("output", "whisper"),
    ("output", "effnet"),
}


@dataclass(frozen=True)
class Case:
    """One allocation, palettized.

    Attributes:
        target: bits per palettized weight with everything.
        candidates: clustered and judged for every weight.
        judged_by: the algorithm that candidates are clustered with.
        together: palettized in sequence, as it is to be used; or apart, as is predicted.
        limit: of calibration batches; 0 is all.
    """

    model: str
    group: int
    target: float
    metric: str
    candidates: tuple[int, ...]
    judged_by: str
    together: bool
    seed: int
    limit: int

    @property
    def key(self) -> str:
        return " | ".join(str(part) for part in asdict(self).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--groups", nargs="+", type=int, default=[16, 0])
    parser.add_argument("--target", type=float, default=3.5, help="held against uniform 4 bits")
    parser.add_argument("--curve", nargs="*", type=float, default=[2.5, 3, 3.5, 4, 5])
    parser.add_argument("--points", nargs="*", type=float, default=[2.5, 3.5, 5])
    parser.add_argument("--metric", default="hessian")
    parser.add_argument("--candidates", nargs="+", type=int, default=[2, 3, 4, 6, 8])
    parser.add_argument("--judged-by", default="lnq", help="clusters candidates")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("mixed.json"))
    parser.add_argument("--uniform", type=Path, default=Path("accuracy.json"))
    parser.add_argument("--plot", type=Path, help="draw the curves; needs matplotlib")
    parser.add_argument("--limit", type=int, default=0, help="calibration batches, to try it out")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    panels = []
    for model in args.models:
        for group in args.groups:
            for seed in range(args.seeds):
                panels.append(panel(model, group, seed, args))
                show(panels[-1], args.target)
    if args.plot:
        plot(panels, args.plot)


# --- measuring ----------------------------------------------------------------------------------


def panel(model: str, group: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return all that is compared: our curve, coreai-opt's, and points of prediction."""
    task = _limited(TASKS[model](seed), args.limit)
    dense = uniform.Case(model, 32, 0, "dense", seed)
    case = Case(
        model=model,
        group=group,
        target=LEAST,
        metric=args.metric,
        candidates=tuple(sorted(args.candidates)),
        judged_by=args.judged_by,
        together=True,
        seed=seed,
        limit=args.limit,
    )
    targets = sorted({LEAST, args.target, *args.curve})
    found: dict[str, Any] = {
        "model": model,
        "group": group,
        "seed": seed,
        "metric": args.metric,
        "judged_by": args.judged_by,
        "measure": task.measure,
        "lower_is_better": task.lower_is_better,
        "dense": kept(args.uniform, dense.key, lambda: _uniform(dense, args))["value"],
        "curve": [_kept(replace(case, target=target), args) for target in targets],
        "points": [_kept(replace(case, target=t, together=False), args) for t in args.points],
    }
    for method in PEERS:
        cases = [uniform.Case(model, bits, group, method, seed) for bits in PEER_BITS]
        if reason := uniform.missing(method):
            known = read(args.uniform)
            print(f"only known figures of {method}: {reason}")
            cases = [one for one in cases if one.key in known]
        rows = [kept(args.uniform, one.key, lambda one=one: _uniform(one, args)) for one in cases]
        found[method] = [_counted(row, one) for row, one in zip(rows, cases, strict=True)]
    return found


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def kept(path: Path, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a row of a results file, measured where it is missing."""
    results = read(path)
    if key not in results:
        row = measure()
        results = {**read(path), key: row}  # another process may have written meanwhile
        path.write_text(json.dumps(results, indent=1))
    return results[key]


def _kept(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    row = kept(args.results, case.key, lambda: {**asdict(case), **mixed(case, args)})
    how = "in sequence" if case.together else "as predicted"
    print(
        f"{case.model:8s} {_where(case.group):13s} target {case.target:g} {how}: "
        f"{row['bpw']:.3f} bpw, {row['value']:.4f}, {row['seconds_allocating']:.0f} s to allocate, "
        f"{row['seconds']:.0f} s to palettize",
        flush=True,
    )
    return row


def _uniform(case: uniform.Case, args: argparse.Namespace) -> dict[str, Any]:
    row = {**asdict(case), **uniform.measure(case, args.threads)}
    uniform.show(row)
    return row


def _counted(row: dict[str, Any], case: uniform.Case) -> dict[str, Any]:
    """Return a row with bits per weight, which old results of ``run.py`` lack."""
    if math.isnan(row["bpw"]):
        row = {**row, "bpw": uniform.planned_bits(case, TASKS[case.model](case.seed))[0]}
    return row


def mixed(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Allocate, palettize by the written config, and judge."""
    task = _limited(TASKS[case.model](case.seed), case.limit)
    torch.set_num_threads(args.threads)
    folder = args.results.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    allocation = allocated(case, task, folder)
    allocating = time.perf_counter() - started
    how = "" if case.together else "-apart"
    name = f"{case.model}-{case.group}-{case.metric}-{case.target:g}-{case.seed}{how}.yaml"
    path = folder / name
    (with_lnq(allocation.config) if case.together else allocation.config).to_yaml(path)
    squares = None
    if case.metric == "fisher" and case.judged_by == "kmeans1d" and not case.together:
        squares = sensitivities(case, folder)  # they weigh the clustering of candidates too
    started = time.perf_counter()
    model = palettized(case, task, KMeansPalettizerConfig.from_yaml(path), squares)
    seconds = time.perf_counter() - started
    plans = [tensor.choice.plan for tensor in allocation.tensors]
    weights = sum(math.prod(plan.shape) for plan in plans)
    index = sum(math.prod(plan.layout.index_shape) * plan.spec.n_bits for plan in plans)
    return {
        "bpw": allocation.bits_per_weight,
        "index_bpw": index / weights,
        "predicted": allocation.predicted_loss,
        "bits": {plan.name: plan.spec.n_bits for plan in plans},
        "value": task.judge(model),
        "seconds": seconds,
        "seconds_allocating": allocating,
    }


def allocated(case: Case, task: Task, folder: Path) -> Allocation:
    """Choose bits; judged candidates are kept in ``folder`` for all targets."""
    like = uniform.Case(case.model, min(case.candidates), case.group, "", case.seed)
    config = KMeansPalettizerConfig.from_dict(uniform._config(like, {"algorithm": case.judged_by}))
    target = case.target
    if target == LEAST:
        # All with the fewest bits; the little more keeps rounding from making it less than that.
        target = uniform.planned_bits(like, task)[0] + 1e-9
    options = {"divergence": "kl" if task.lower_is_better else "mse"}
    with uniform.expected_warnings():
        return allocate(
            task.model,
            config,
            task.batches[0],
            target_bpw=target,
            candidates=case.candidates,
            metric=case.metric,
            metric_options=options if case.metric == "output" else None,
            sensitivity_path=sensitivities(case, folder) if case.metric == "fisher" else None,
            batches=task.batches,
            cache=folder / f"{case.model}-{case.group}-{case.metric}-{case.seed}.cache.json",
        )


def sensitivities(case: Case, folder: Path) -> Path:
    """Write squared gradients, once for every target, and return their file."""
    path = folder / f"{case.model}-{case.group}-{case.seed}-{case.limit}.safetensors"
    if not path.exists():
        task = _limited(TASKS[case.model](case.seed), case.limit)
        like = uniform.Case(case.model, min(case.candidates), case.group, "", case.seed)
        config = KMeansPalettizerConfig.from_dict(uniform._config(like, {}))
        palettizer = KMeansPalettizer(task.model, config)
        palettizer.prepare(task.batches[0])
        uniform._weigh(palettizer, replace(task, loss=_per_label(case.model, task)))
        palettizer.save_sensitivities(path)
    return path


def _per_label(model: str, task: Task) -> Callable[[Any, Any], Tensor]:
    """Return a loss whose squared gradients are those of one label.

    That of a mean over n labels, which pull in different directions, is smaller by n.
    """

    def labels(batch: tuple[Tensor, ...]) -> int:
        if model == "smollm2":
            return batch[0][:, 1:].numel()
        return batch[1].shape[1] - 1 if model == "whisper" else len(batch[0])

    return lambda output, batch: task.loss(output, batch) * math.sqrt(labels(batch))


def with_lnq(config: KMeansPalettizerConfig) -> KMeansPalettizerConfig:
    """Return a config with another algorithm in all of its specs."""
    plain = copy.deepcopy(config.to_dict())
    for module in plain["kmeans_palettization_config"]["module_name_configs"].values():
        for spec in module["module_state_spec"].values():
            spec["algorithm"], spec["algorithm_options"] = "lnq", {}
    return KMeansPalettizerConfig.from_dict(plain)


def palettized(
    case: Case, task: Task, config: KMeansPalettizerConfig, squares: Path | None
) -> nn.Module:
    """Palettize in sequence; or each weight apart, as candidates were clustered."""
    palettizer = KMeansPalettizer(task.model, config)
    with uniform.expected_warnings():
        palettizer.calibrate(task.batches, sequential=case.together)
        return palettizer.prepare(
            task.batches[0],
            sensitivity_path=squares,
            show_progress=False,
        )


def _limited(task: Task, limit: int) -> Task:
    return replace(task, batches=task.batches[:limit]) if limit else task


# --- showing ------------------------------------------------------------------------------------


def _where(group: int) -> str:
    return f"groups of {group}" if group else "per tensor"


def lost(found: dict[str, Any], value: float) -> float:
    """Return how much more is lost than by the dense model, in the unit that losses add up in."""

    def loss(value: float) -> float:
        if found["measure"] == "perplexity":
            return math.log(value)
        return value if found["lower_is_better"] else 1 - value

    return loss(value) - loss(found["dense"])


def better(found: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Say whether we lose less with no more bits."""
    smaller = ours["bpw"] <= theirs["bpw"] + 1e-6
    return bool(smaller and lost(found, ours["value"]) < lost(found, theirs["value"]))


def show(found: dict[str, Any], target: float) -> None:
    """Print a panel: the curves, and what is asked of them."""
    print(
        f"\n{found['model']}, {_where(found['group'])}, seed {found['seed']}: {found['measure']}, "
        f"dense {found['dense']:.4f}; by {found['metric']}, candidates by {found['judged_by']}"
    )
    rows = [
        (f"mixed {row['target']:g}" if row["target"] else "all the least", row["index_bpw"], row)
        for row in found["curve"]
    ]
    rows += [(f"{m} {row['bits']}", row["bits"], row) for m in PEERS for row in found[m]]
    for name, index, row in rows:
        print(
            f"  {name:28s} {row['bpw']:6.3f} bpw {index:6.3f} index {row['value']:12.4f}"
            f"   lost {lost(found, row['value']):9.4f}"
        )
    own = next(row for row in found["curve"] if row["target"] == target)
    for method in PEERS:
        for row in found[method]:
            if row["bits"] == 4:
                said = "beats" if better(found, own, row) else "DOES NOT BEAT"
                print(f"  mixed {target:g} {said} {method} at 4 bits")
        under = [any(better(found, own, row) for own in found["curve"]) for row in found[method]]
        if under:
            said = "below" if all(under) else "NOT below"
            print(f"  the curve is {said} that of {method} ({sum(under)} of {len(under)} points)")
    predictions(found)


def predictions(found: dict[str, Any]) -> None:
    """Print what was predicted and what came, each palettized as predicted."""
    if not found["points"]:
        return
    rows = sorted(found["points"], key=lambda row: row["predicted"])
    measured = [lost(found, row["value"]) for row in rows]
    in_unit = (found["metric"], found["model"]) in LOSSES
    for row, loss in zip(rows, measured, strict=True):
        print(
            f"  at {row['bpw']:.3f} bpw predicted {row['predicted']:.5g}, lost {loss:.5g}", end=""
        )
        print(f", ratio {loss / row['predicted']:.2f}" if in_unit and row["predicted"] else "")
    print("  ranks agree" if measured == sorted(measured) else "  RANKS DIFFER")


def plot(panels: Iterable[dict[str, Any]], path: Path) -> None:
    """Draw measure against bits per weight: a column per model, a row per granularity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [found for found in panels if found["seed"] == 0]
    models = list(dict.fromkeys(found["model"] for found in panels))
    groups = list(dict.fromkeys(found["group"] for found in panels))
    size = (5 * len(models), 4 * len(groups))
    figure, axes = pyplot.subplots(len(groups), len(models), figsize=size, squeeze=False)
    for found in panels:
        axis = axes[groups.index(found["group"])][models.index(found["model"])]
        for name, rows in (("mixed, lnq", found["curve"]), *((m, found[m]) for m in PEERS)):
            points = sorted((row["bpw"], row["value"]) for row in rows)
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=name)
        axis.axhline(found["dense"], color="grey", linestyle=":", label="dense")
        axis.set(
            title=f"{found['model']}, {_where(found['group'])}",
            xlabel="bits per palettized weight",
            ylabel=found["measure"],
        )
        if found["lower_is_better"]:
            axis.set_yscale("log")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
