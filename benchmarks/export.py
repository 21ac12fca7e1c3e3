"""Export a real model whole to a runtime's format, and judge the file.

    python benchmarks/export.py --backend coreai --model minilm [--group-size 16] [--keep FOLDER]

Models are those of ``models.py``. Every weight, embeddings included, is palettized at 4 bits. The
file is then read back: palettized weights must equal the model's exactly, and where the runtime
works on this machine (Core AI's does, on the CPU in float32) its outputs are compared with torch's.
``--submodule NAME`` exports that part alone, with the inputs it gets inside the model.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import importlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    PerTensorGranularity,
)
from palette_core.storage.bits import model_bits
from palette_core.storage.sites import palette_sites

MODELS = ("minilm", "effnet", "whisper_encoder", "smollm2")
SUFFIXES = {"coreai": ".aimodel", "coreml": ".mlpackage"}
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=sorted(SUFFIXES), required=True)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--submodule", help="export this part alone")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, help="channels that share a table; default: all")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--keep", type=Path, help="write the file to this folder and keep it")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(arguments, arguments.keep or Path(folder)), indent=2))


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Palettize, export and compare; returns the figures."""
    model, inputs = getattr(models, arguments.model)()
    model = model.float().eval()
    if arguments.submodule:
        model, inputs = part_of(model, inputs, arguments.submodule)
    palettizer = KMeansPalettizer(model, config(arguments.bits, arguments.group_size))
    palettizer.prepare(inputs)
    palettizer.finalize(backend=arguments.backend)
    with torch.no_grad():
        wanted = flattened(model(*inputs))
    path = folder / f"{arguments.model}{SUFFIXES[arguments.backend]}"
    options = dict(option.split("=", 1) for option in arguments.option)
    with peak_memory() as peak:
        started, worked = time.perf_counter(), time.process_time()
        palettizer.export(path, inputs, backend=arguments.backend, backend_options=options)
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
    bits, elements = model_bits(model)
    return {
        "model": arguments.model + (f":{arguments.submodule}" if arguments.submodule else ""),
        "backend": arguments.backend,
        "dense_mib": round(elements * 4 / MIB, 2),
        "packed_mib": round(bits / 8 / MIB, 2),
        "file_mib": round(sum(p.stat().st_size for p in path.rglob("*")) / MIB, 2),
        "export_seconds": round(seconds, 1),
        "export_processor_seconds": round(worked, 1),
        "memory_before_mib": round(peak[0] / MIB),
        "peak_memory_mib": round(peak[1] / MIB),
        "peak_above_before_per_dense": round((peak[1] - peak[0]) / (elements * 4), 2),
        **weights_read_back(model, path, arguments.backend),
        **(outputs_of_coreai(path, inputs, wanted) if arguments.backend == "coreai" else {}),
    }


def config(bits: int, group_size: int | None) -> KMeansPalettizerConfig:
    """Every weight and every embedding alike, tables per tensor or per group of channels."""
    granularity = (
        PerTensorGranularity()
        if group_size is None
        else PerGroupedChannelGranularity(axis=0, group_size=group_size)
    )
    spec = PalettizationSpec(n_bits=bits, granularity=granularity)
    return KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": spec, "in_proj_weight": spec},
            op_type_config={"embedding": OpKMeansPalettizerConfig(op_state_spec={"weight": spec})},
        )
    )


def part_of(
    model: nn.Module, inputs: tuple[Any, ...], name: str
) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a submodule with the positional inputs that it gets first."""
    part, seen = model.get_submodule(name), []
    handle = part.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        model(*inputs)
    handle.remove()
    return part, seen[0]


def flattened(outputs: Any) -> list[torch.Tensor]:
    """Return the tensors of what a model returns, in order."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if leaf is not None]


# --- judging the file ---------------------------------------------------------------------------


def weights_read_back(model: nn.Module, path: Path, backend: str) -> dict[str, Any]:
    """Decode the palettized weights of the file, and compare them with the model's."""
    stored = importlib.import_module(f"{backend}_backend").read_weights(path)
    sites = palette_sites(model)
    equal = sum(is_stored(s.name, s.palette.palettized().decode().numpy(), stored) for s in sites)
    return {"weights": len(sites), "weights_stored": len(stored), "weights_equal": equal}


def is_stored(name: str, weight: np.ndarray, stored: Mapping[str, np.ndarray]) -> bool:
    """Say whether a file has a weight, or the parts of it that are in use, and all are equal.

    Parts have their range in the name: ``pos.weight[0:16]``, or ``w[:, 0:8]`` of a later axis.
    """
    parts = [key for key in stored if key == name or key.startswith(f"{name}[")]
    return bool(parts) and all(
        np.array_equal(stored[key], weight[ranges(key.removeprefix(name))]) for key in parts
    )


def ranges(text: str) -> tuple[slice, ...]:
    """Return what ``[:, 0:8]`` means; the whole tensor for no text."""
    ends = [one.split(":") for one in text.strip("[]").split(", ") if one]
    return tuple(slice(*(int(end) if end else None for end in pair)) for pair in ends)


def outputs_of_coreai(
    path: Path, inputs: tuple[Any, ...], wanted: list[torch.Tensor]
) -> dict[str, Any]:
    """Run the file on the CPU, in float32, and compare its outputs with torch's."""
    started = time.perf_counter()
    got = asyncio.run(run_coreai(path, inputs))
    pairs = [(g, w.numpy()) for g, w in zip(got, wanted, strict=True) if w.is_floating_point()]
    return {
        "run_seconds": round(time.perf_counter() - started, 1),
        "largest_output": float(max(np.abs(w).max() for _, w in pairs)),
        "max_difference": float(max(np.abs(g - w).max() for g, w in pairs)),
        "mean_difference": float(np.mean([np.abs(g - w).mean() for g, w in pairs])),
    }


async def run_coreai(path: Path, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    async with AIModelAsset.load(path).executable() as loaded:
        function = loaded.load_function("main")
        # The runtime has no 64-bit integers.
        arrays = [x.to(torch.int32) if x.dtype is torch.int64 else x for x in inputs]
        named = zip(function.desc.input_names, arrays, strict=True)
        outputs = await function(inputs={name: NDArray(x.numpy()) for name, x in named})
        return [np.array(outputs[name].numpy()) for name in function.desc.output_names]


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Measure resident memory of this process on Linux: bytes before, and at most inside.

    What palettizing has used and given back is taken from the process first: it would be used again
    unseen.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    figures = [memory("VmRSS")]
    yield figures
    figures.append(memory("VmHWM"))


def memory(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
