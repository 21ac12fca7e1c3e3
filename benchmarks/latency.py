"""How long a prepared and a finalized model take, as ratios to the dense one.

    python benchmarks/latency.py [--json FILE]

Each case is timed side by side in one process: dense, prepared (evaluation mode) and finalized
calls alternate, and the medians are compared.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig


def cases() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Return model and input by name."""
    torch.manual_seed(0)
    return {
        "linear 4096², batch 1": (nn.Linear(4096, 4096), torch.randn(1, 4096)),
        "linear 4096², batch 64": (nn.Linear(4096, 4096), torch.randn(64, 4096)),
        "conv 3×3 256→256, 28²": (nn.Conv2d(256, 256, 3, padding=1), torch.randn(1, 256, 28, 28)),
        "transformer layer 512": (
            nn.TransformerEncoderLayer(512, 8, batch_first=True),
            torch.randn(4, 64, 512),
        ),
    }


@torch.no_grad()
def medians(models: dict[str, nn.Module], x: torch.Tensor, repeats: int) -> dict[str, float]:
    """Return the median seconds of a call by model, calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 3):
        for name, model in models.items():
            start = time.perf_counter()
            model(x)
            if turn >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(model: nn.Module, x: torch.Tensor, repeats: int) -> dict[str, float]:
    """Return milliseconds of the dense model, and the ratios of the others to it."""
    model.eval()
    prepared_model = copy.deepcopy(model)
    palettizer = KMeansPalettizer(prepared_model, KMeansPalettizerConfig.presets.w4())
    prepared = palettizer.prepare((x,))
    finalized = KMeansPalettizer(model).finalize(copy.deepcopy(prepared), backend="packed")
    seconds = medians({"dense": model, "prepared": prepared, "finalized": finalized}, x, repeats)
    return {
        "dense_ms": seconds["dense"] * 1e3,
        "prepared_ratio": seconds["prepared"] / seconds["dense"],
        "finalized_ratio": seconds["finalized"] / seconds["dense"],
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    results = {}
    print(f"{'case':<26}{'dense ms':>10}{'prepared':>10}{'finalized':>11}")
    for name, (model, x) in cases().items():
        row = results[name] = measure(model, x, options.repeats)
        print(
            f"{name:<26}{row['dense_ms']:>10.2f}{row['prepared_ratio']:>9.2f}x"
            f"{row['finalized_ratio']:>10.1f}x"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
