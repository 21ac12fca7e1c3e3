"""Memory of palettizing a model of a few GB, with and without ``mmap_dir``.

    python benchmarks/big_model.py [--layers 48] [--width 4096] [--json FILE]

The model is made up: ``layers`` square linear layers of normal weights. Every run is a process of
its own. Printed are MiB of resident memory (`/proc/self/status`): private memory, which must be
there (RssAnon), and pages of files (RssFile), which the system may drop at any time.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

FIELDS = ("RssAnon", "RssFile")


def resident() -> dict[str, float]:
    """Return resident memory in MiB by kind."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) / 1024 for line in lines if line[0][:-1] in FIELDS}


class Peak:
    """The highest resident memory, by kind, while the block runs."""

    def __enter__(self) -> Peak:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.start = self.peak = resident()
        self.seconds = -time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            now = resident()
            self.peak = {key: max(self.peak[key], now[key]) for key in FIELDS}

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds += time.perf_counter()
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.end = resident()

    def row(self) -> dict[str, float]:
        """Return what there is to print."""
        return {
            "seconds": self.seconds,
            "before": self.start["RssAnon"],
            "peak above": self.peak["RssAnon"] - self.start["RssAnon"],
            "after": self.end["RssAnon"],
            "file pages after": self.end["RssFile"] - self.start["RssFile"],
        }


def work(layers: int, width: int, n_bits: int, mapped: bool) -> dict[str, dict[str, float]]:
    """Prepare, finalize, run and save one model, and return the memory of each."""
    import torch
    from torch import nn

    from palette_core import KMeansPalettizer, KMeansPalettizerConfig, save_checkpoint

    torch.manual_seed(0)
    rows: dict[str, dict[str, float]] = {}
    with Peak() as peak, torch.no_grad():
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        for layer in model:
            layer.weight.normal_(0, 0.02)
    rows["make the model"] = peak.row()
    inputs = (torch.randn(1, width),)
    config = KMeansPalettizerConfig.from_dict(
        {
            "kmeans_palettization_config": {
                "global_config": {"op_state_spec": {"weight": {"n_bits": n_bits}}}
            }
        }
    )
    palettizer = KMeansPalettizer(model, config)
    with Peak() as peak:
        palettizer.prepare(inputs)
    rows["prepare"] = peak.row()
    with tempfile.TemporaryDirectory() as folder:
        with Peak() as peak:
            palettizer.finalize(
                backend="packed", mmap_dir=Path(folder) / "weights" if mapped else None
            )
        rows["finalize"] = peak.row()
        with Peak() as peak, torch.no_grad():
            model(*inputs)
        rows["run"] = peak.row()
        with Peak() as peak:
            save_checkpoint(model, Path(folder) / "model.safetensors")
        rows["save"] = peak.row()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--child", choices=("memory", "mapped"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(work(args.layers, args.width, args.bits, args.child == "mapped")))
        return
    weights = args.layers * args.width**2
    layer = args.width**2 * 4 / 2**20
    packed = weights * args.bits / 8 / 2**20
    print(f"dense {weights * 4 / 2**20:.0f} MiB, a layer {layer:.0f}, packed {packed:.0f}")
    found = {}
    for kind in ("memory", "mapped"):
        size = ["--layers", args.layers, "--width", args.width, "--bits", args.bits]
        command = [sys.executable, __file__, *map(str, size), "--child", kind]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
        print(f"\nfinalized in {'files (mmap_dir)' if kind == 'mapped' else 'memory'}, MiB:")
        columns = list(next(iter(found[kind].values())))
        print(f"{'':<16}" + "".join(f"{column:>18}" for column in columns))
        for name, row in found[kind].items():
            print(f"{name:<16}" + "".join(f"{row[column]:>18.1f}" for column in columns))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
