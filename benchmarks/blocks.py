"""Memory of data-aware palettization block by block, by the number of blocks, and of all in memory.

    python benchmarks/blocks.py [--blocks 6 24] [--width 512] [--batches 8] [--length 256]

Each checkpoint is made up, and palettized by gptq in a process of its own. Figures are the peak of
resident memory above that of the process with everything loaded and compiled, in MiB; and seconds
of the processor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from clustering.contenders import PeakMemory
from safetensors.torch import save_file
from torch import Tensor, nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig, palettize_checkpoint

WORDS = 1000
SPEC = {
    "n_bits": 3,
    "algorithm": "gptq",
    "granularity": {"type": "per_grouped_channel", "axis": 0, "group_size": 16},
}
CONFIG = KMeansPalettizerConfig.from_dict(
    {"kmeans_palettization_config": {"global_config": {"op_state_spec": {"weight": SPEC}}}}
)


class Block(nn.Module):
    """Attention with 8 heads, and a gated feed-forward part of 11/4 of the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 11 * width // 4
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkvo = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, wide, bias=False) for _ in range(2))
        self.down = nn.Linear(wide, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](x)
        q, k, v = (layer(h).unflatten(-1, (8, -1)).transpose(1, 2) for layer in self.qkvo[:3])
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.qkvo[3](mixed.transpose(1, 2).flatten(2))
        h = self.norms[1](x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """Embedding, blocks, norm and head."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(WORDS, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, WORDS, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def write(folder: Path, width: int, blocks: int) -> int:
    """Write a checkpoint, a shard for each block; returns its bytes."""
    folder.mkdir()
    torch.manual_seed(0)
    files: dict[str, str] = {}
    total = 0
    for number in range(-1, blocks):
        part = Decoder(width, 0) if number < 0 else Block(width)
        prefix = "" if number < 0 else f"layers.{number}."
        states = {f"{prefix}{name}": tensor for name, tensor in part.state_dict().items()}
        file = f"model-{number + 2:05d}-of-{blocks + 1:05d}.safetensors"
        save_file(states, folder / file)
        files |= dict.fromkeys(states, file)
        total += sum(tensor.nbytes for tensor in states.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def measured(how: str, width: int, blocks: int, batches: int, length: int) -> dict[str, float]:
    """Palettize a checkpoint here; returns MiB and seconds."""
    with tempfile.TemporaryDirectory() as place:
        _palettize("streamed", Path(place) / "warm", 64, 1, 1, 16)
        total = write(Path(place) / "src", width, blocks)
        memory = PeakMemory()
        started = time.process_time()
        _palettize(how, Path(place), width, blocks, batches, length)
        peak = memory.growth() / 2**20
        return {"size": total / 2**20, "peak": peak, "seconds": time.process_time() - started}


def _palettize(how: str, place: Path, width: int, blocks: int, batches: int, length: int) -> None:
    if not (place / "src").exists():
        place.mkdir()
        write(place / "src", width, blocks)
    made = torch.Generator().manual_seed(1)
    given = [torch.randint(WORDS, (1, length), generator=made) for _ in range(batches)]
    with torch.device("meta"):
        model = Decoder(width, blocks)
    if how == "streamed":
        options = {"calibration": given, "skeleton": model, "progress": False}
        palettize_checkpoint(place / "src", CONFIG, place / "out", **options)
        return
    from safetensors.torch import load_file

    states: dict[str, Tensor] = {}
    for file in (place / "src").glob("*.safetensors"):
        states |= load_file(file)
    model.load_state_dict(states, assign=True)
    palettizer = KMeansPalettizer(model, CONFIG)
    palettizer.calibrate(given, sequential=True)
    palettizer.prepare(given[0], show_progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[6, 24])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.width, arguments.blocks[0], arguments.batches, arguments.length)
    if arguments.one:
        print(json.dumps(measured(arguments.one, *sizes)))
        return
    print(f"{'blocks':>7} {'how':>10} {'checkpoint':>11} {'peak':>7} {'seconds':>8}")
    for blocks in arguments.blocks:
        for how in ("streamed", "in memory"):
            command = [sys.executable, __file__, "--one", how, "--blocks", str(blocks)]
            for name in ("width", "batches", "length"):
                command += [f"--{name}", str(getattr(arguments, name))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            figures = f"{found['size']:>11.0f} {found['peak']:>7.0f} {found['seconds']:>8.0f}"
            print(f"{blocks:>7} {how:>10} {figures}", flush=True)


if __name__ == "__main__":
    main()
