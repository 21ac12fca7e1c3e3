"""What the defaults of OpenVINO's CPU change in the outputs of our files, and what exactness costs.

    PALETTE_LOADERS=folder python benchmarks/openvino_defaults.py [--models minilm] [--rounds N]

Every model is palettized at 4 bits with int8 tables and a scale per channel, embeddings too, and
exported once. Then it runs with each combination of the two properties that round activations, and
in larger groups of those, which the option ``activation_group_size`` writes down; the reference is
the finalized model in torch. *off* is the root mean square of differences, as a share of that of
the outputs; the measure is that of ``accuracy/tasks.py``; times are ratios to the exact
setting, the quickest of interleaved rounds on two threads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

import palette_core as pc

sys.path.append(str(Path(__file__).parent / "accuracy"))
from tasks import TASKS, Task

SETTINGS: dict[str, dict[str, str]] = {
    "both as by default": {},
    "no dynamic quantization": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    "f32": {"INFERENCE_PRECISION_HINT": "f32"},
    "f32, groups of 64": {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64",
    },
    "f32, groups of 192": {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "192",
    },
    "f32, no dynamic quantization": {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    },
}
EXACT = list(SETTINGS)[-1]


class Runs(nn.Module):
    """A compiled file, called like the model."""

    def __init__(self, path: Path, settings: dict[str, str]) -> None:
        super().__init__()
        core = ov.Core()
        self._compiled = core.compile_model(path, "CPU", {**settings, "INFERENCE_NUM_THREADS": "2"})

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self._compiled([x.numpy() for x in inputs])[0]))


def shapes_of(name: str) -> Any:
    """Return the axes that change while a model is judged."""
    dim = torch.export.Dim
    rows, length, words = dim("rows", max=64), dim("length", max=256), dim("words", max=440)
    return {
        "minilm": ({0: rows, 1: length}, {0: rows, 1: length}),
        "smollm2": None,
        "whisper": (None, {1: words}),
    }[name]


def exported(task: Task, name: str, path: Path) -> nn.Module:
    """Write a palettized model, and return it: exporting has finalized it."""
    int8 = pc.QuantizationSpec(dtype=torch.int8)
    spec = pc.PalettizationSpec(n_bits=4, lut_qspec=int8, enable_per_channel_scale=True)
    rows = pc.OpKMeansPalettizerConfig(op_state_spec={"*": spec})
    made = pc.ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": spec}, op_type_config={"embedding": rows}
    )
    palettizer = pc.KMeansPalettizer(task.model, pc.KMeansPalettizerConfig(global_config=made))
    palettizer.prepare(task.batches[0], backend="openvino")
    shapes = shapes_of(name)
    palettizer.export(path, task.batches[0], backend="openvino", dynamic_shapes=shapes)
    return task.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["minilm", "smollm2", "whisper"])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in args.models:
        task = TASKS[name](0)
        dense = task.judge(task.model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.xml"
            model = exported(task, name, path)
            print(f"{name}: {task.measure} {dense:.4f} dense, {task.judge(model):.4f} in torch")
            with torch.no_grad():
                wanted = model(*task.batches[0])
            runs = {label: Runs(path, settings) for label, settings in SETTINGS.items()}
            seconds: dict[str, list[float]] = {label: [] for label in runs}
            for _ in range(args.rounds):
                for label, run in runs.items():
                    started = time.perf_counter()
                    run(*task.batches[0])
                    seconds[label].append(time.perf_counter() - started)
            for label, run in runs.items():
                gap = (run(*task.batches[0]) - wanted).square().mean().sqrt()
                off = float(gap / wanted.square().mean().sqrt())
                ratio = min(seconds[label]) / min(seconds[EXACT])
                print(
                    f"  {label:30s} off {off:.1e}  {task.measure} {task.judge(run):.4f}  "
                    f"time {ratio:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
