"""How much memory a calibration takes, in bytes per palettized weight.

    python benchmarks/calibration_memory.py [--model mlp] [--context N] [--steps N] [--peer]

Needs Linux, and for SmolLM2-135M PALETTE_LOADERS (see ``models.py``). The model is prepared at 4
bits per tensor, the tied embedding included, and calibrated on real text with the cross-entropy of
the next token. ``--model mlp`` takes 16 linear layers of 1024² and random numbers.

What is told is how far resident memory rises above that of the prepared model: until the last step
is done, and until the palettes have been found again. Activations are part of it, and grow with
``--context``; a run with few tokens shows what the weights take.

With ``--peer``, coreai-opt, where it is installed, does the same in the place of palette_core.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from models import _loader
from torch import Tensor, nn


def trim() -> None:
    """Give freed memory back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident(what: str = "VmRSS") -> int:
    """Return resident bytes, or with ``VmHWM`` the most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {what} in /proc/self/status; this measures on Linux only")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def ours(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    from palette_core import KMeansPalettizer

    palettizer = KMeansPalettizer(model)
    palettizer.prepare(inputs)
    return palettizer


def theirs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    from coreai_opt.palettization import KMeansPalettizer

    palettizer = KMeansPalettizer(model)
    palettizer.prepare(inputs)
    return palettizer


Task = tuple[nn.Module, list[Tensor], Callable[[Tensor, Tensor], Tensor]]


def smollm2(context: int, steps: int) -> Task:
    """Model, batches and loss."""
    loader = _loader("smollm2")
    text = Path(loader.P, "gensim_data", "lee_background.cor").read_text(encoding="latin-1")
    ids = torch.tensor(loader.tokenizer().encode(text).ids[: context * steps])
    return loader.load(), list(ids.view(steps, 1, -1)), next_token_loss


def mlp(context: int, steps: int) -> Task:
    """Model, batches and loss."""
    torch.manual_seed(0)
    layers = [part for _ in range(16) for part in (nn.Linear(1024, 1024), nn.Tanh())]
    return nn.Sequential(*layers), list(torch.randn(steps, context, 1024)), F.mse_loss


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--model", choices=("smollm2", "mlp"), default="smollm2")
    parser.add_argument("--context", type=int, default=128, help="tokens of a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--peer", action="store_true", help="measure coreai-opt")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    make = {"smollm2": smollm2, "mlp": mlp}[options.model]
    model, batches, loss_fn = make(options.context, options.steps)
    started = time.perf_counter()
    palettizer = (theirs if options.peer else ours)(model, (batches[0],))
    prepared = time.perf_counter()
    weights = sum(m.numel() for n, m in model.named_parameters() if n.endswith("original"))
    trim()
    before = resident()
    forget_peak()
    with palettizer.calibration_mode(loss_fn=loss_fn) as calibration:
        for batch in batches:
            calibration.step(model(batch), batch)
        steps = resident("VmHWM") - before
        stepped = time.perf_counter()
    total = resident("VmHWM") - before
    done = time.perf_counter()
    trim()
    figures = {
        "who": "coreai-opt" if options.peer else "palette_core",
        "model": options.model,
        "context": options.context,
        "steps": options.steps,
        "palettized_weights": weights,
        "dense_bytes": 4 * weights,
        "extra_bytes_steps": steps,
        "extra_bytes_total": total,
        "extra_bytes_after": resident() - before,
        "bytes_per_weight_steps": steps / weights,
        "bytes_per_weight_total": total / weights,
        "seconds_prepare": prepared - started,
        "seconds_steps": stepped - prepared,
        "seconds_clustering": done - stepped,
    }
    for name, value in figures.items():
        print(f"{name:<24}{value:>16.2f}" if isinstance(value, float) else f"{name:<24}{value:>16}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    sys.exit(main())
