"""Vector k-means: seconds and inertia, ours beside scikit-learn's and the reference's.

    python benchmarks/clustering/vector.py [--json FILE] [--only 512x512] [--threads 2]

scikit-learn and coreai_opt take part where they can be imported. Points are pairs (or longer
runs) along the output channels of a normal weight with deviation 0.02. Every figure is one run
after a first small one that loads or compiles what needs it; our inertia and the others' are
worked out by the same lines, in float64.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import torch

from palette_core.builtins.clusterers.kmeans_vector.clusterer import (
    KMeansVector,
    KMeansVectorOptions,
)
from palette_core.plugins import ClusterProblem
from palette_core.tensors.layout import BlockLayout

# name, shape, bits, cluster_dim
CASES = [
    ("512x512, 4 bits, pairs", (512, 512), 4, 2),
    ("512x512, 4 bits, fours", (512, 512), 4, 4),
    ("1024x1024, 8 bits, pairs", (1024, 1024), 8, 2),
]


def ours(weight: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    layout = BlockLayout(tuple(weight.shape), tuple(weight.shape), dim, 0)
    problem = ClusterProblem(layout.split(weight), 2**bits)
    return layout.merge(KMeansVector(KMeansVectorOptions()).fit(problem).decode())


def sklearn(weight: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    from sklearn.cluster import KMeans

    layout = BlockLayout(tuple(weight.shape), tuple(weight.shape), dim, 0)
    points = layout.split(weight)
    found = KMeans(2**bits, n_init=1, random_state=0).fit(points[0].numpy())
    return layout.merge(torch.from_numpy(found.cluster_centers_[found.labels_])[None].float())


def coreai_opt(weight: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    from coreai_opt.palettization import (
        KMeansPalettizer,
        KMeansPalettizerConfig,
        ModuleKMeansPalettizerConfig,
        PalettizationSpec,
    )

    rows, columns = weight.shape
    model = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False))
    model[0].weight.data = weight.clone()
    spec = PalettizationSpec(n_bits=bits, cluster_dim=dim)
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": spec}, enable_fast_kmeans_mode=False
        )
    )
    torch.manual_seed(0)
    np.random.seed(0)
    palettizer = KMeansPalettizer(model, config)
    return palettizer.prepare((torch.zeros(1, columns),))[0].weight.detach()


PEERS = {"sklearn": "sklearn", "coreai_opt": "coreai_opt"}
RUN = {"ours": ours, "sklearn": sklearn, "coreai_opt": coreai_opt}


def measure(who: str, weight: torch.Tensor, bits: int, dim: int) -> dict[str, float]:
    start = time.perf_counter()
    decoded = RUN[who](weight, bits, dim)
    seconds = time.perf_counter() - start
    inertia = float((weight.double() - decoded.double()).square().sum())
    return {"seconds": seconds, "inertia": inertia}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip", nargs="*", default=[], choices=sorted(PEERS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    present = [w for w, module in PEERS.items() if importlib.util.find_spec(module)]
    who = ["ours", *[w for w in present if w not in args.skip]]
    for name in who:
        RUN[name](torch.randn(16, 16), 1, 2)
    rows = []
    for name, shape, bits, dim in CASES:
        if args.only not in name:
            continue
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
        figures = {w: measure(w, weight, bits, dim) for w in who}
        rows.append({"case": name, **figures})
        text = [f"{name:26}"]
        for w, figure in figures.items():
            text.append(f"{w} {figure['seconds']:.3f} s, inertia {figure['inertia']:.5g}")
            if w != "ours":
                text.append(
                    f"(x{figure['seconds'] / figures['ours']['seconds']:.1f} time, "
                    f"x{figure['inertia'] / figures['ours']['inertia']:.4f} inertia)"
                )
        print("  ".join(text), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
