"""OpenVINO files beside NNCF's: size, memory, time of the first answer, and of batches.

    python benchmarks/openvino_files.py [--rows 4096] [--model FACTORY] [--rounds N] [--only WORD]

Needs openvino; NNCF's forms take part where nncf is installed (``pip install nncf``, 3.4 here).
The subject is a square linear layer, or the model of a ``file.py:callable`` and its example inputs.
Every form is written once and measured in a process of its own, on two threads of the runtime, in
turn by rounds; the quickest counts. Memory is what the process takes more once the model is
compiled, without pages of the mapped file, and at its peak. Times are ratios to dense float32; the
runtime quantizes activations as it does by default, in forms that let it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

import palette_core as pc

Write = Callable[[Path], None]
BATCHES = (1, 64)
_MEASURE = "--measure"


def load(factory: str | None, rows: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the subject and example inputs."""
    torch.manual_seed(0)
    if factory is None:
        return nn.Linear(rows, rows, bias=False).eval(), (torch.randn(2, rows),)
    from palette_core.cli.factories import load_factory

    loaded = load_factory(factory, ())
    inputs = loaded.example_inputs
    return loaded.model.eval(), tuple(inputs.values()) if isinstance(inputs, dict) else inputs


def forms(factory: str | None, rows: int) -> dict[str, Write]:
    """Return what writes each form to an ``.xml``."""

    def dense() -> Any:
        model, inputs = load(factory, rows)
        return ov.convert_model(model, example_input=inputs[0] if len(inputs) == 1 else inputs)

    def ours(**spec: Any) -> Write:
        def write(path: Path) -> None:
            model, inputs = load(factory, rows)
            made = pc.ModuleKMeansPalettizerConfig(
                op_state_spec={"weight": pc.PalettizationSpec(n_bits=4, **spec)}
            )
            config = pc.KMeansPalettizerConfig(global_config=made)
            palettizer = pc.KMeansPalettizer(model, config)
            palettizer.prepare(inputs, backend="openvino")
            shapes = None
            if factory is None:
                shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
            palettizer.export(path, inputs, backend="openvino", dynamic_shapes=shapes)

        return write

    def theirs(mode: str, **options: Any) -> Write:
        def write(path: Path) -> None:
            import nncf

            modes = nncf.CompressWeightsMode
            made = nncf.compress_weights(dense(), mode=getattr(modes, mode), **options)
            ov.save_model(made, path, compress_to_fp16=False)

        return write

    found: dict[str, Write] = {
        "dense float32": lambda path: ov.save_model(dense(), path, compress_to_fp16=False),
        "ours, float tables": ours(),
        "ours, int8 tables": ours(lut_qspec=pc.QuantizationSpec(dtype=torch.int8)),
        "ours, int8 tables, channel scales": ours(
            lut_qspec=pc.QuantizationSpec(dtype=torch.int8), enable_per_channel_scale=True
        ),
    }
    if importlib.util.find_spec("nncf") is not None:
        found |= {
            "NNCF int8": theirs("INT8_SYM"),
            "NNCF int4, groups of 128": theirs(
                "INT4_SYM", group_size=128, ratio=1.0, all_layers=True
            ),
            "NNCF CB4, groups of 128": theirs("CB4", group_size=128, ratio=1.0, all_layers=True),
        }
    return found


def memory() -> tuple[int, int]:
    """Return bytes of private memory now, and the most there has been in all."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    status = Path("/proc/self/status").read_text()
    private = int(rollup.split("Anonymous:")[1].split()[0])
    return private * 1024, int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(path: Path, inputs: list[np.ndarray[Any, Any]], batches: tuple[int, ...]) -> None:
    """Print, as JSON, what a file takes in this process."""
    import time

    core = ov.Core()
    before, peak_before = memory()
    start = time.perf_counter()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    compiled = core.compile_model(str(path), "CPU", settings)
    compiled(inputs)
    first = time.perf_counter() - start
    after, peak = memory()
    times = {}
    for batch in batches:
        given = [np.repeat(each, batch, axis=0) for each in inputs]
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            compiled(given)
            seconds.append(time.perf_counter() - start)
        times[batch] = min(seconds)
    found = {"memory": after - before, "peak": peak - peak_before, "first": first, "times": times}
    print(json.dumps(found))


def in_a_process(path: Path) -> dict[str, Any]:
    """Return what a fresh process measures."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, __file__, _MEASURE, str(path)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def best_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the least of each figure."""
    found = {name: min(one[name] for one in rounds) for name in ("memory", "peak", "first")}
    times = {batch: min(one["times"][batch] for one in rounds) for batch in rounds[0]["times"]}
    return {**found, "times": times}


def main() -> None:
    if sys.argv[1:2] == [_MEASURE]:
        path = Path(sys.argv[2])
        given = np.load(path.parent / "inputs.npz")
        batches = BATCHES if int(given["batched"]) else (1,)
        measure(path, [given[f"x{i}"] for i in range(len(given.files) - 1)], batches)
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--model", metavar="FACTORY")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="forms with this in their name, and dense")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        _, inputs = load(options.model, options.rows)
        kept = {f"x{i}": each[:1].numpy() for i, each in enumerate(inputs)}
        np.savez(Path(folder) / "inputs.npz", batched=int(options.model is None), **kept)
        paths = {}
        for name, write in forms(options.model, options.rows).items():
            if options.only in name or name.startswith("dense"):
                paths[name] = Path(folder) / f"{len(paths)}.xml"
                write(paths[name])
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in paths}
        for _ in range(options.rounds):
            for name, path in paths.items():
                rounds[name].append(in_a_process(path))
        dense: dict[str, Any] | None = None
        for name, path in paths.items():
            best = best_of(rounds[name])
            dense = dense or best
            size = sum(path.with_suffix(end).stat().st_size for end in (".xml", ".bin"))
            times = ", ".join(
                f"batch {batch} {seconds / dense['times'][batch]:.2f}"
                for batch, seconds in best["times"].items()
            )
            print(
                f"{name}: {size / 1e6:.1f} MB on disk, {best['memory'] / 1e6:.0f} in memory, peak "
                f"{best['peak'] / 1e6:.0f}, first answer {best['first'] / dense['first']:.2f}, "
                f"{times}",
                flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
