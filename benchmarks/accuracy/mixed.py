"""Mixed bits: what a budget buys, beside coreai-opt's uniform bits.

    PALETTE_LOADERS=folder python benchmarks/accuracy/mixed.py [--models minilm effnet]
        [--target 3.5] [--curve 2.5 3 3.5 4 5] [--metric hessian] [--candidates 2 3 4 6 8]
        [--groups 16 0] [--results mixed.json] [--uniform accuracy.json] [--plot mixed.png]

``allocate`` gives every weight one of the candidates, so that the average is the target; its config
is written (YAML), read back, and palettized with ``lnq`` in sequence. A target counts everything
over the palettized weights: indices, tables, scales. Ours in sequence in ``run.py``'s results take
part in our curve; where these lack the smallest candidate for every weight, it is measured.

Uniform bits of coreai-opt are read from ``run.py``'s results, and measured into them where they are
missing and coreai-opt is installed. At three points what the metric predicts is held against what
is lost on data apart, by the model as it was predicted: its weights palettized apart from each
other. Every figure is kept in the results file and not measured again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import methods
import run as uniform
import torch
from budget import LEAST, Case, limited, spend
from figures import kept, read, said, where
from tasks import TASKS

PEERS = tuple(name for name, how in methods.METHODS.items() if (how or {}).get("peer"))
PEER_BITS = (2, 3, 4, 6)
OURS = tuple(n for n, how in methods.METHODS.items() if how and {"mixed", "sequential"} & {*how})

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
    parser.add_argument("--tuned", choices=("outputs", "labels"), default="", help="see tune.py")
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
    task = limited(TASKS[model](seed), args.limit)
    dense = methods.Case(model, 32, 0, "dense", seed)
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
        tuned=args.tuned,
    )
    own = [
        row
        for row in read(args.uniform).values()
        if (row["model"], row["group"], row["seed"]) == (model, group, seed)
        and row["method"] in OURS
    ]
    targets = {args.target, *args.curve}
    if not any(row["bits"] == min(args.candidates) for row in own):
        targets.add(LEAST)
    found: dict[str, Any] = {
        "model": model,
        "group": group,
        "seed": seed,
        "metric": args.metric,
        "judged_by": args.judged_by,
        "measure": task.measure,
        "lower_is_better": task.lower_is_better,
        "dense": kept(args.uniform, dense.key, lambda: _uniform(dense, args))["value"],
        "curve": [_kept(replace(case, target=target), args) for target in sorted(targets)] + own,
        "points": [
            _kept(replace(case, target=target, together=False, tuned=""), args)
            for target in args.points
        ],
    }
    for method in PEERS:
        cases = [methods.Case(model, bits, group, method, seed) for bits in PEER_BITS]
        if reason := methods.missing(method):
            known = read(args.uniform)
            print(f"only known figures of {method}: {reason}")
            cases = [one for one in cases if one.key in known]
        rows = [kept(args.uniform, one.key, lambda one=one: _uniform(one, args)) for one in cases]
        found[method] = [_counted(row, one) for row, one in zip(rows, cases, strict=True)]
    return found


def _kept(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    row = kept(args.results, case.key, lambda: {**asdict(case), **mixed(case, args)})
    how = "in sequence" if case.together else "as predicted"
    print(
        f"{case.model:8s} {where(case.group):13s} target {case.target:g} {how}: "
        f"{row['bpw']:.3f} bpw, {row['value']:.4f}, {row['seconds_allocating']:.0f} s to allocate, "
        f"{row['seconds']:.0f} s to palettize",
        flush=True,
    )
    return row


def _uniform(case: methods.Case, args: argparse.Namespace) -> dict[str, Any]:
    row = {**asdict(case), **uniform.measure(case, args.threads, args.uniform.with_suffix(""))}
    print(said(row), flush=True)
    return row


def _counted(row: dict[str, Any], case: methods.Case) -> dict[str, Any]:
    """Return a row with bits per weight, which old results of ``run.py`` lack."""
    if math.isnan(row["bpw"]):
        row = {**row, "bpw": methods.planned_bits(case, TASKS[case.model](case.seed))[0]}
    return row


def mixed(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Allocate, palettize by the written config, and judge."""
    task = limited(TASKS[case.model](case.seed), case.limit)
    torch.set_num_threads(args.threads)
    spent = spend(case, task, args.results.with_suffix(""))
    plans = [tensor.choice.plan for tensor in spent.allocation.tensors]
    weights = sum(math.prod(plan.shape) for plan in plans)
    index = sum(math.prod(plan.layout.index_shape) * plan.spec.n_bits for plan in plans)
    return {
        "bpw": spent.allocation.bits_per_weight,
        "index_bpw": index / weights,
        "predicted": spent.allocation.predicted_loss,
        "bits": {plan.name: plan.spec.n_bits for plan in plans},
        "value": task.judge(spent.model),
        "seconds": spent.seconds,
        "seconds_allocating": spent.seconds_allocating,
    }


# --- showing ------------------------------------------------------------------------------------


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
        f"\n{found['model']}, {where(found['group'])}, seed {found['seed']}: {found['measure']}, "
        f"dense {found['dense']:.4f}; by {found['metric']}, candidates by {found['judged_by']}"
    )
    for row in [*found["curve"], *(row for method in PEERS for row in found[method])]:
        print(
            f"  {_name(row):40s} {row['bpw']:6.3f} bpw {row['value']:12.4f}"
            f"   lost {lost(found, row['value']):9.4f}"
        )
    own = next(row for row in found["curve"] if row.get("target") == target)
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


def _name(row: dict[str, Any]) -> str:
    if "method" in row:
        return f"{row['method']} {row['bits']}"
    if not row["target"]:
        return "all the least"
    return f"mixed {row['target']:g}{', tuned on ' * bool(row.get('tuned'))}{row.get('tuned', '')}"


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


def _front(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the points of our curve that no other one of ours is better than."""
    curve = found["curve"]
    return [row for row in curve if not any(better(found, other, row) for other in curve)]


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
        for name, rows in (("ours", _front(found)), *((m, found[m]) for m in PEERS)):
            points = sorted((row["bpw"], row["value"]) for row in rows)
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=name)
        axis.axhline(found["dense"], color="grey", linestyle=":", label="dense")
        axis.set(
            title=f"{found['model']}, {where(found['group'])}",
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
