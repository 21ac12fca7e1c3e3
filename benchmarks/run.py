"""All measurements, one command: palette_core beside coreai-opt, scikit-learn and the floor.

    python benchmarks/run.py [--quick] [--only scalar|vector|models|latency]
                             [--json FILE] [--plot FILE.png]

Peers take part where they are installed, real models where PALETTE_LOADERS names their loaders
(see ``models.py``). Every contender runs a case in a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clustering.contenders import LIBRARIES, Case, measured

# Peaks while clustering, in sizes of the largest weight.
MEMORY_TARGET, EXACT_MEMORY_TARGET, VECTOR_MEMORY_TARGET = 3.0, 8.0, 4.0
SUITES = ("scalar", "vector", "models", "latency")
_BIG, _MILLION = (4096, 4096), (1024, 1024)
CASES = {
    "scalar": [
        Case("4096², 4 bits, per tensor", 30, _BIG),
        Case("4096², 4 bits, groups of 16", 15, _BIG, group=16),
        Case("4096², 8 bits, per tensor", 15, _BIG, bits=8),
        Case("1024², 4 bits, exact", 10, _MILLION, exact=True),
        Case("1024², 8 bits, exact", 10, _MILLION, bits=8, exact=True),
    ],
    "vector": [
        Case("512², 4 bits, pairs", 40, (512, 512), dim=2),
        Case("384², 4 bits, pairs", 40, (384, 384), dim=2),
        Case("512², 4 bits, fours", 15, (512, 512), dim=4),
        Case("1024², 8 bits, pairs", None, (1024, 1024), bits=8, dim=2),
    ],
    "models": [
        Case("MiniLM, 4 bits", 20, model="minilm"),
        Case("EfficientNet-Lite0, 4 bits", 25, model="effnet"),
        Case("SmolLM2-135M, 4 bits", 25, model="smollm2"),
    ],
}
_QUICK_SHAPE = (1024, 1024)
_SKLEARN_MOST = 1 << 20  # weights; it takes minutes for more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller weights, no SmolLM2")
    parser.add_argument("--only", choices=SUITES)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw the ratios here; needs matplotlib")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=360, help="seconds for one contender")
    parser.add_argument("--skip", nargs="*", default=[], choices=LIBRARIES[1:])
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    torch.set_num_threads(options.threads)
    os.environ["PALETTE_BENCH_THREADS"] = str(options.threads)
    os.environ["NUMBA_NUM_THREADS"] = str(options.threads)
    suites = [options.only] if options.only else list(SUITES)
    results: dict[str, Any] = {"about": about(options.threads), "cases": []}
    print(", ".join(f"{k} {v}" for k, v in results["about"].items()))
    if "scalar" in suites:
        results["first_call"] = first_call()
        print(
            "first call: " + ", ".join(f"{k} {v:.1f} s" for k, v in results["first_call"].items())
        )
    peers = [n for n in LIBRARIES[1:] if n not in options.skip and importlib.util.find_spec(n)]
    print(HEAD)
    for suite in (s for s in suites if s != "latency"):
        for case in chosen(suite, options.quick):
            results["cases"].append(row := run_case(suite, case, peers, options.limit))
            print(line(row), flush=True)
            save(results, options.json)
    if "latency" in suites:
        results["latency"] = latency()
        save(results, options.json)
    if options.plot:
        draw(results["cases"], options.plot)


def about(threads: int) -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
    }


def first_call() -> dict[str, float]:
    """Return seconds of the first and second ``prepare`` with no compiled kernels at hand."""
    program = (
        "import time, torch\n"
        "from clustering.contenders import Case, normal_model, prepared\n"
        "for dim in (1, 2):\n"
        "    for _ in 'ab':\n"
        "        case = Case('', 0, dim=dim)\n"
        "        print(prepared('ours', case, *normal_model((256, 256))))\n"
    )
    names = ("scalar compiling", "scalar again", "vector compiling", "vector again")
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "NUMBA_CACHE_DIR": folder,
            "PYTHONPATH": str(Path(__file__).parent.resolve()),
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
    return dict(zip(names, map(float, done.stdout.split()), strict=True))


def chosen(suite: str, quick: bool) -> list[Case]:
    cases = CASES[suite]
    if suite == "models":
        if not os.environ.get("PALETTE_LOADERS"):
            print("models: skipped; PALETTE_LOADERS names the folder of their loaders")
            return []
        return [c for c in cases if not (quick and c.model == "smollm2")]
    if not quick:
        return cases
    small = {
        _BIG: _QUICK_SHAPE,
        _MILLION: (512, 512),
        (512, 512): (256, 256),
        (384, 384): (192, 192),
    }
    return [
        Case(
            **{
                **vars(c),
                "shape": small[c.shape],
                "name": f"{c.name} (quick: {small[c.shape][0]}²)",
            }
        )
        for c in cases
    ]


def run_case(suite: str, case: Case, peers: list[str], limit: float) -> dict[str, Any]:
    row: dict[str, Any] = {"suite": suite, "case": case.name, "target": case.target}
    row["memory_target"] = (
        VECTOR_MEMORY_TARGET
        if case.dim > 1
        else EXACT_MEMORY_TARGET
        if case.exact
        else MEMORY_TARGET
    )
    if case.shape:
        row["floor"] = floor(case.shape)
    # Ours before and after the peers, as a busy machine is not equally busy all the time.
    ours = measured("ours", case, budget=10, limit=limit)
    for peer in peers:
        if peer == "sklearn" and not fits_sklearn(case):
            continue
        row[peer] = measured(peer, case, budget=10, limit=limit)
    again = measured("ours", case, budget=10, limit=limit)
    row["ours"] = ours if "failed" in ours or "failed" in again else merged(ours, again)
    if "failed" in row["ours"]:
        return row
    row["memory_ratio"] = row["ours"]["peak_bytes"] / row["ours"]["largest_bytes"]
    for peer in peers:
        if peer in row and "failed" not in row[peer]:
            row[f"{peer}_ratio"] = row[peer]["seconds"] / row["ours"]["seconds"]
            row[f"{peer}_error_ratio"] = row["ours"]["error"] / row[peer]["error"]
    if case.model and "coreai_opt_ratio" in row:
        least = row["ours"]["alone_seconds"] + row["ours"]["forward_seconds"]
        row["most_ratio"] = row["coreai_opt"]["seconds"] / least
    return row


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the faster seconds and the higher peak."""
    best = min(one, other, key=lambda r: r["seconds"])
    floors = ("alone_seconds", "forward_seconds")
    return {
        **best,
        **{k: min(one[k], other[k]) for k in floors if one[k] is not None},
        "runs": one["runs"] + other["runs"],
        "peak_bytes": max(one["peak_bytes"], other["peak_bytes"]),
    }


def fits_sklearn(case: Case) -> bool:
    if not case.shape or case.group:
        return False
    return case.shape[0] * case.shape[1] <= _SKLEARN_MOST and case.bits <= 4


def floor(shape: tuple[int, ...]) -> dict[str, float]:
    """Return seconds of one copy of the weight and of one numpy sort."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    flat = weight.reshape(-1).numpy()
    return {"copy": fastest(weight.clone), "sort": fastest(lambda: np.sort(flat))}


def fastest(call: Any) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


HEAD = (
    f"{'case':<42}{'ours s':>8}{'alone s':>9}{'peer s':>9}{'ratio':>8}{'target':>8}{'':>8}"
    f"{'forward s':>11}{'at most':>9}"
    f"{'error':>10}{'sklearn s':>11}{'copies':>8}{'sorts':>7}"
    f"{'peak MiB':>10}{'/weight':>9}{'peer MiB':>10}"
)


def line(row: dict[str, Any]) -> str:
    """Return a row of the table; ``error`` is ours over coreai-opt's."""
    ours, peer = row["ours"], row.get("coreai_opt", {})
    if "failed" in ours:
        return f"{row['case']:<42} failed: {ours['failed']}"
    ratio, space = row.get("coreai_opt_ratio"), row.get("floor", {})
    target = row["target"]
    met = ("met" if ratio >= target else "MISSED") if ratio and target else ""
    cells = [
        f"{row['case']:<42}{ours['seconds']:>8.3f}",
        cell(ours["alone_seconds"], 9, 3),
        cell(peer.get("seconds"), 9, 2),
        cell(ratio, 7, 1) + ("x" if ratio is not None else " "),
        cell(target, 7, 0) + (f"x{met:>8}" if target else " " * 9),
        cell(ours.get("forward_seconds"), 11, 3),
        cell(row.get("most_ratio"), 8, 1) + ("x" if "most_ratio" in row else " "),
        cell(row.get("coreai_opt_error_ratio"), 10, 6),
        cell(row.get("sklearn", {}).get("seconds"), 11, 2),
        cell(ours["seconds"] / space["copy"] if space else None, 8, 1),
        cell(ours["seconds"] / space["sort"] if space else None, 7, 2),
        cell(ours["peak_bytes"] / 2**20, 10, 1),
        cell(row["memory_ratio"], 8, 2)
        + ("!" if row["memory_ratio"] > row["memory_target"] else " "),
        cell(peer["peak_bytes"] / 2**20 if "peak_bytes" in peer else None, 10, 1),
    ]
    notes = [f"  {who}: {row[who]['failed']}" for who in row if "failed" in _as_dict(row[who])]
    return "".join(cells) + "".join(notes)


def cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def latency() -> dict[str, Any]:
    """Run ``latency.py`` and return its figures."""
    script = Path(__file__).with_name("latency.py")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "latency.json"
        subprocess.run([sys.executable, str(script), "--json", str(file)], check=True)
        figures: dict[str, Any] = json.loads(file.read_text())
    return figures


def save(results: dict[str, Any], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(results, indent=2))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds by case and contender, with the target as a mark."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if "failed" not in row["ours"]]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.75 * len(rows)), layout="constrained")
    colours = {"ours": "#1b7f5c", "coreai_opt": "#b0552b", "sklearn": "#7a7a7a"}
    for offset, (who, colour) in enumerate(colours.items()):
        there = [
            (i, row[who]["seconds"]) for i, row in enumerate(rows) if "seconds" in row.get(who, {})
        ]
        places = [i + 0.27 * (offset - 1) for i, _ in there]
        axes.barh(places, [s for _, s in there], 0.25, label=who, color=colour)
    aimed = [
        (i, row["coreai_opt"]["seconds"] / row["target"])
        for i, row in enumerate(rows)
        if row["target"] and "seconds" in row.get("coreai_opt", {})
    ]
    if aimed:
        axes.plot(
            [s for _, s in aimed],
            [i - 0.27 for i, _ in aimed],
            "k|",
            ms=14,
            label="target for ours",
        )
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows])
    axes.set_xscale("log")
    axes.set_xlabel("seconds, logarithmic")
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
