"""OpenVINO files beside NNCF's: size, memory, time of the first answer, and of batches.

    python benchmarks/openvino_files.py [--rows 4096] [--model FACTORY] [--embeddings]
        [--rounds N] [--only WORD] [--threads N] [--export-peak]
        [--activation-group-size N]

Needs openvino; NNCF's forms take part where nncf is installed (``pip install nncf``, 3.4 here).
The subject is a square linear layer, or the model of a ``file.py:callable`` and its example inputs.
Every form is written once and measured in a process of its own, in turn by rounds, every other one
backwards; the quickest counts. Memory is what the process takes more once the model has answered,
without pages of the mapped file and what is free again, and at its peak. Times are ratios to dense
float32; the runtime quantizes activations as it does by default, in forms that let it. A decoder
with states (``models.py:smollm2_decoder``) generates 24 tokens, four times; its time is the median
of a token and of the rounds, by the clock and of the processor. Processes differ by a tenth, by
where their weights come to lie: take six rounds.
``--embeddings`` palettizes them too. ``--activation-group-size`` measures int8 tables with that
option of the backend, too. ``--export-peak`` measures memory of an export instead, over
that of the process with the palettized model, as a share of the dense weights.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

import palette_core as pc
from palette_core.plugins import get_catalog

Write = Callable[[Path], None]
BATCHES = (1, 64)
_MEASURE = "--measure"


def load(
    factory: str | None, rows: int
) -> tuple[nn.Module, tuple[Tensor, ...] | dict[str, Tensor]]:
    """Return the subject and example inputs."""
    torch.manual_seed(0)
    if factory is None:
        return nn.Linear(rows, rows, bias=False).eval(), (torch.randn(2, rows),)
    from palette_core.cli.factories import load_factory

    loaded = load_factory(factory, ())
    return loaded.model.eval(), loaded.example_inputs


def shapes_of(model: nn.Module, factory: str | None) -> Any:
    """Return axes of any length: of a decoder all, of a layer the batch."""
    if factory is None:
        return ({0: torch.export.Dim("batch", min=1, max=1024)},)
    return model.dynamic_shapes() if hasattr(model, "dynamic_shapes") else None


def options_of(model: nn.Module) -> dict[str, Any]:
    """Return options of the backend: of a decoder, what its states are."""
    options: dict[str, Any] = model.backend_options() if hasattr(model, "backend_options") else {}
    return options


def config_of(embeddings: bool, **spec: Any) -> pc.KMeansPalettizerConfig:
    """Return a config of 4 bits for default weights, and embeddings where they are asked for."""
    made = pc.PalettizationSpec(n_bits=4, **spec)
    rows = pc.OpKMeansPalettizerConfig(op_state_spec={"*": made})
    return pc.KMeansPalettizerConfig(
        global_config=pc.ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": made}, op_type_config={"embedding": rows} if embeddings else {}
        )
    )


def export(
    palettizer: pc.KMeansPalettizer,
    model: nn.Module,
    inputs: tuple[Tensor, ...] | dict[str, Tensor],
    path: Path,
    factory: str | None,
    **options: Any,
) -> None:
    """Write a prepared model."""
    palettizer.export(
        path,
        inputs,
        backend="openvino",
        dynamic_shapes=shapes_of(model, factory),
        backend_options={**options_of(model), **options},
    )


def forms(
    factory: str | None, rows: int, *, embeddings: bool, group: int | None = None
) -> dict[str, Write]:
    """Return what writes each form to an ``.xml``."""

    def dense(path: Path) -> None:
        model, inputs = load(factory, rows)
        entry = get_catalog().backend("openvino")
        backend = entry.factory(entry.options(**options_of(model)))
        backend.export(model, inputs, path, shapes_of(model, factory))

    def ours(options: dict[str, Any] | None = None, **spec: Any) -> Write:
        def write(path: Path) -> None:
            model, inputs = load(factory, rows)
            palettizer = pc.KMeansPalettizer(model, config_of(embeddings, **spec))
            palettizer.prepare(inputs, backend="openvino")
            export(palettizer, model, inputs, path, factory, **(options or {}))

        return write

    def theirs(mode: str, **options: Any) -> Write:
        def write(path: Path) -> None:
            import nncf

            dense(path.with_name("dense.xml"))
            modes = nncf.CompressWeightsMode
            model = ov.Core().read_model(path.with_name("dense.xml"))
            made = nncf.compress_weights(model, mode=getattr(modes, mode), **options)
            ov.save_model(made, path, compress_to_fp16=False)

        return write

    found: dict[str, Write] = {
        "dense float32": dense,
        "ours, float tables": ours(),
        "ours, int8 tables": ours(lut_qspec=pc.QuantizationSpec(dtype=torch.int8)),
        "ours, int8 tables, channel scales": ours(
            lut_qspec=pc.QuantizationSpec(dtype=torch.int8), enable_per_channel_scale=True
        ),
    }
    if group is not None:
        found[f"ours, int8 tables, channel scales, activations by {group}"] = ours(
            {"activation_group_size": group},
            lut_qspec=pc.QuantizationSpec(dtype=torch.int8),
            enable_per_channel_scale=True,
        )
    if importlib.util.find_spec("nncf") is not None:
        found |= {
            "NNCF int8": theirs("INT8_SYM"),
            "NNCF int4, groups of 128": theirs(
                "INT4_SYM", group_size=128, ratio=1.0, all_layers=True
            ),
            "NNCF CB4, groups of 128": theirs("CB4", group_size=128, ratio=1.0, all_layers=True),
        }
    return found


def call_names(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return positional inputs by the names of ``forward``'s arguments."""
    return dict(zip(inspect.signature(model.forward).parameters, inputs, strict=False))


def memory() -> tuple[int, int]:
    """Return bytes of private memory now, and the most there has been in all.

    What the allocator has been given back and keeps for later is returned first: it is a matter of
    the allocator, and 5 MB after a layer of 4096 × 4096 was compiled.
    """
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    rollup = Path("/proc/self/smaps_rollup").read_text()
    status = Path("/proc/self/status").read_text()
    private = int(rollup.split("Anonymous:")[1].split()[0])
    return private * 1024, int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(
    path: Path, inputs: dict[str, np.ndarray[Any, Any]], batches: tuple[int, ...], threads: int
) -> None:
    """Print, as JSON, what a file takes in this process."""
    core = ov.Core()
    before, peak_before = memory()
    start = time.perf_counter()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    request.infer(inputs)
    first = time.perf_counter() - start
    after, peak = memory()
    times: dict[str, float] = {}
    for batch in batches:
        given = {name: np.repeat(each, batch, axis=0) for name, each in inputs.items()}
        times[f"batch {batch}"] = min(
            timed(lambda given=given: request.infer(given)) for _ in range(20)
        )
    if "position_ids" in inputs:
        generate(request, 24)
        clock, busy = zip(*(each for _ in range(4) for each in generate(request, 24)), strict=True)
        times = {"token": statistics.median(clock), "processor": statistics.median(busy)}
    found = {"memory": after - before, "peak": peak - peak_before, "first": first, "times": times}
    print(json.dumps(found))


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def generate(request: Any, count: int) -> list[tuple[float, float]]:
    """Take the likeliest ``count`` tokens after a prompt of one.

    Returns:
        Seconds of each token, by the clock and of the processor.
    """
    request.reset_state()
    token, taken = 1, []
    for at in range(count):
        given = {
            "input_ids": np.array([[token]]),
            "attention_mask": np.ones((1, at + 1), np.int64),
            "position_ids": np.array([[at]]),
            "beam_idx": np.zeros(1, np.int32),
        }
        start = time.process_time()
        seconds = timed(lambda given=given: request.infer(given))
        taken.append((seconds, time.process_time() - start))
        token = int(request.get_output_tensor(0).data[0, -1].argmax())
    return taken


def export_peak(factory: str | None, rows: int, *, embeddings: bool) -> None:
    """Print how much memory an export takes over the model that is exported."""
    model, inputs = load(factory, rows)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    spec = {"lut_qspec": pc.QuantizationSpec(dtype=torch.int8)}
    palettizer = pc.KMeansPalettizer(model, config_of(embeddings, **spec))
    palettizer.prepare(inputs, backend="openvino")
    palettizer.finalize(backend="openvino")
    gc.collect()
    memory()  # what is free goes back first: it would count as the model's, and hide the export's
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory()[1]
    with tempfile.TemporaryDirectory() as folder:
        export(palettizer, model, inputs, Path(folder) / "model.xml", factory)
    peak = memory()[1] - before
    print(f"export: {peak / 1e6:.0f} MB over the model's, {peak / size:.2f} of {size / 1e6:.0f} MB")


def in_a_process(path: Path, threads: int) -> dict[str, Any]:
    """Return what a fresh process measures."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, __file__, _MEASURE, str(path), str(threads)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def best_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the least of each figure, and the median of tokens' times."""
    found = {name: min(one[name] for one in rounds) for name in ("memory", "peak", "first")}
    judge = statistics.median if "token" in rounds[0]["times"] else min
    times = {batch: judge(one["times"][batch] for one in rounds) for batch in rounds[0]["times"]}
    return {**found, "times": times}


def main() -> None:
    if sys.argv[1:2] == [_MEASURE]:
        path = Path(sys.argv[2])
        given = dict(np.load(path.parent / "inputs.npz"))
        batches = BATCHES if int(given.pop("batched")) else (1,)
        measure(path, given, batches, int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--model", metavar="FACTORY")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="forms with this in their name, and dense")
    parser.add_argument("--embeddings", action="store_true", help="palettize embeddings too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export-peak", action="store_true")
    parser.add_argument("--activation-group-size", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.export_peak:
        export_peak(options.model, options.rows, embeddings=options.embeddings)
        return
    with tempfile.TemporaryDirectory() as folder:
        model, inputs = load(options.model, options.rows)
        named = inputs if isinstance(inputs, dict) else call_names(model, inputs)
        kept = {k: each[:1].numpy() for k, each in named.items() if isinstance(each, Tensor)}
        del model
        np.savez(Path(folder) / "inputs.npz", batched=int(options.model is None), **kept)
        paths = {}
        for name, write in forms(
            options.model,
            options.rows,
            embeddings=options.embeddings,
            group=options.activation_group_size,
        ).items():
            if options.only in name or name.startswith("dense"):
                paths[name] = Path(folder) / f"{len(paths)}.xml"
                write(paths[name])
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in paths}
        for turn in range(options.rounds):
            for name in list(paths)[:: -1 if turn % 2 else 1]:
                rounds[name].append(in_a_process(paths[name], options.threads))
        dense: dict[str, Any] | None = None
        for name, path in paths.items():
            best = best_of(rounds[name])
            dense = dense or best
            size = sum(path.with_suffix(end).stat().st_size for end in (".xml", ".bin"))
            times = ", ".join(
                f"{batch} {seconds / dense['times'][batch]:.2f}"
                for batch, seconds in best["times"].items()
            )
            if "token" in best["times"] and name.startswith("ours"):
                rates = (dense["times"][k] / t for k, t in best["times"].items())
                told = " and ".join(f"{rate:.2f}" for rate in rates)
                times += f": {told} times the dense tokens per second (2 wanted)"
            print(
                f"{name}: {size / 1e6:.1f} MB on disk, {best['memory'] / 1e6:.0f} in memory, peak "
                f"{best['peak'] / 1e6:.0f}, first answer {best['first'] / dense['first']:.2f}, "
                f"{times}",
                flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
