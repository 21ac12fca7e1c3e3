"""Seconds and error of scalar k-means, beside the floor, scikit-learn and the reference.

    python benchmarks/clustering/scalar.py [--size 4096] [--json out.json] [--sklearn]

All contenders get the same weight and the same number of threads. The floor is one copy of the
tensor and one numpy sort. scikit-learn is asked for few iterations on a part of the weight, as
it would take minutes; its seconds are scaled to the whole. The reference runs where coreai_opt
can be imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from palette_core.builtins.clusterers.kmeans1d.clusterer import KMeans1d
from palette_core.builtins.clusterers.kmeans1d.warm import kernels_are_cached, warm_up
from palette_core.plugins import ClusterProblem

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CASES = [  # name, dtype, bits, rows of a group (0: per tensor), decimal places
    ("per tensor", "float16", 4, 0, 4),
    ("per tensor", "float16", 8, 0, 4),
    ("per tensor", "bfloat16", 4, 0, 4),
    ("per tensor", "float32", 2, 0, 4),
    ("per tensor", "float32", 4, 0, 4),
    ("per tensor", "float32", 6, 0, 4),
    ("per tensor", "float32", 8, 0, 4),
    ("per tensor, exact", "float32", 4, 0, None),
    ("per tensor, exact", "float32", 8, 0, None),
    ("groups of 16", "float32", 4, 16, 4),
    ("groups of 16", "float32", 8, 16, 4),
    ("groups of 16, exact", "float32", 4, 16, None),
    ("groups of 4", "float32", 4, 4, 4),
    ("groups of 16", "float16", 4, 16, 4),
]


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    best, out = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        out = call()
        best = min(best, time.perf_counter() - start)
    return best, out


def squared_error(decoded: torch.Tensor, weight: torch.Tensor) -> float:
    return float((decoded.reshape(-1).double() - weight.reshape(-1).double()).square().sum())


def ours(weight: torch.Tensor, bits: int, group: int, resolution: int | None, repeats: int):
    rows = weight.shape[0] if group == 0 else group
    points = weight.reshape(weight.shape[0] // rows, -1, 1)
    problem = ClusterProblem(points, 2**bits, resolution=resolution)
    seconds, found = timed(lambda: KMeans1d().fit(problem), repeats)
    return seconds, squared_error(found.decode(), weight)


def reference(weight: torch.Tensor, bits: int, group: int, resolution: int | None):
    from coreai_opt.palettization import (
        KMeansPalettizer,
        KMeansPalettizerConfig,
        ModuleKMeansPalettizerConfig,
        PalettizationSpec,
    )
    from coreai_opt.palettization.spec import PerGroupedChannelGranularity, PerTensorGranularity

    grain = (
        PerGroupedChannelGranularity(axis=0, group_size=group) if group else PerTensorGranularity()
    )
    spec = PalettizationSpec(n_bits=bits, granularity=grain)
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": spec}, enable_fast_kmeans_mode=resolution is not None
        )
    )
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    model = torch.nn.Sequential(layer).eval()
    inputs = (torch.zeros(1, weight.shape[1], dtype=weight.dtype),)
    start = time.perf_counter()
    prepared = KMeansPalettizer(model, config).prepare(inputs)
    seconds = time.perf_counter() - start
    return seconds, squared_error(prepared[0].weight.detach(), weight)


def scikit_learn(weight: torch.Tensor, bits: int) -> float:
    from sklearn.cluster import KMeans

    part = weight.reshape(-1)[: 1 << 18].float().numpy().reshape(-1, 1)
    model = KMeans(2**bits, n_init=1, max_iter=20, random_state=0)
    return timed(lambda: model.fit(part), 1)[0] * weight.numel() / part.shape[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--scale", type=float, default=0.02)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sklearn", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()

    base = (
        torch.randn(args.size, args.size, generator=torch.Generator().manual_seed(0)) * args.scale
    )
    cached = kernels_are_cached()
    compiling, _ = timed(warm_up, 1)
    copy = timed(base.clone, args.repeats)[0]
    sort = timed(lambda: np.sort(base.reshape(-1).numpy()), 1)[0]
    print(f"kernels cached: {cached}; first call {compiling:.2f} s")
    print(
        f"floor: copy {copy:.4f} s, numpy sort {sort:.3f} s; "
        f"torch threads {torch.get_num_threads()}"
    )
    has_reference = importlib.util.find_spec("coreai_opt") is not None
    rows = []
    for name, dtype, bits, group, resolution in CASES:
        weight = base.to(DTYPES[dtype])
        seconds, error = ours(weight, bits, group, resolution, args.repeats)
        row = {"case": name, "dtype": dtype, "bits": bits, "seconds": seconds, "sse": error}
        row["copies"] = seconds / copy
        line = f"{name:20} {dtype:9} {bits} bits {seconds:8.3f} s {seconds / copy:6.1f} copies"
        if args.sklearn and group == 0:
            row["sklearn_seconds"] = scikit_learn(weight, bits)
            line += f"  sklearn {row['sklearn_seconds'] / seconds:8.0f}x"
        if has_reference and not (resolution is None and args.size > 1024):
            row["reference_seconds"], row["reference_sse"] = reference(
                weight, bits, group, resolution
            )
            theirs, its_error = row["reference_seconds"], row["reference_sse"]
            line += f"  reference {theirs:7.2f} s = {theirs / seconds:6.1f}x"
            line += f", our error {error / its_error:.6f} of its"
        print(line, flush=True)
        rows.append(row)
    if args.json:
        about = {"machine": platform.machine(), "threads": torch.get_num_threads()}
        floor = {"copy_seconds": copy, "sort_seconds": sort, "first_call_seconds": compiling}
        with open(args.json, "w") as file:
            json.dump({"about": about, "size": args.size, "floor": floor, "cases": rows}, file)


if __name__ == "__main__":
    main()
