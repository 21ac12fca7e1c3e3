"""Sparse weights: bits per weight and relative error, in memory and in exported files.

    python benchmarks/sparse.py [--size 1024] [--backends packed coreai coreml openvino onnx]

The weight is that of a fresh linear layer, pruned by magnitude. Bits are those of whole files, each
of one layer without a bias, and of a Core ML package those of its file of weights, to which
coremltools adds a bias of 4 kB (an OpenVINO model's are two, 20 kB of them operations; ONNX has no
indices of 1 bit); the error is that of the weights that are read from them, mean
square over variance. Ends with an error where a row takes more bits, or has a larger error,
than coreai-opt 0.4.0 takes and has in its `.aimodel` (`PEER`, to the digits given).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    bits_per_weight,
    read_checkpoint,
)

# By share of zeros and bits: bits per weight and mean squared error over variance, at 1024².
PEER = {
    (0.5, 1): (1.52, 3.6e-2),
    (0.5, 2): (2.02, 8.9e-3),
    (0.5, 4): (3.03, 5.6e-4),
    (0.75, 2): (1.52, 1.7e-3),
    (0.9, 4): (1.43, 1.5e-5),
}
SUFFIXES = {
    "packed": ".safetensors",
    "coreai": ".aimodel",
    "coreml": ".mlpackage",
    "openvino": ".xml",
    "onnx": ".onnx",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--backends", nargs="*", choices=list(SUFFIXES), default=["packed"])
    options = parser.parse_args()
    print("zeros  bits  " + "".join(f"{name:>18}" for name in ("memory", *options.backends)))
    worse = []
    for (zeros, n_bits), peer in PEER.items():
        weight = pruned(options.size, zeros)
        found = measured(weight, n_bits, options.backends)
        cells = "".join(f"{bits:8.2f} {error:9.1e}" for bits, error in found.values())
        print(f"{zeros:5.2f}  {n_bits:4d}  {cells}")
        worse += [
            f"{name}: {zeros} of zeros, {n_bits} bits"
            for name, (bits, error) in found.items()
            if (name in ("memory", "packed", "coreai") and round(bits, 2) > peer[0])
            or float(f"{error:.1e}") > peer[1]
        ]
    if worse and options.size == 1024:
        sys.exit("more than coreai-opt 0.4.0: " + "; ".join(worse))


def pruned(size: int, zeros: float) -> Tensor:
    """Return a weight whose smallest values are zero."""
    torch.manual_seed(0)
    layer = nn.Linear(size, size, bias=False)
    prune.l1_unstructured(layer, "weight", amount=zeros)
    prune.remove(layer, "weight")
    return layer.weight.detach()


def measured(weight: Tensor, n_bits: int, backends: list[str]) -> dict[str, tuple[float, float]]:
    """Return bits per weight and relative error by place."""
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False)).eval()
    model[0].weight.data = weight.clone()
    spec = PalettizationSpec(n_bits=n_bits, sparsity_detection_threshold=0.3)
    rules = ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": spec}, enable_fast_kmeans_mode=False
    )
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(global_config=rules))
    inputs = (torch.ones(1, weight.shape[1]),)
    palettizer.prepare(inputs)
    found = {"memory": (bits_per_weight(model), error_of(weight, model[0].weight.detach()))}
    with tempfile.TemporaryDirectory() as folder:
        for name in backends:
            path = Path(folder) / f"m{SUFFIXES[name]}"
            exact = {"backend_options": {"compute_precision": "float32"}}
            palettizer.export(path, inputs, backend=name, **(exact if name == "coreml" else {}))
            pattern = "weight.bin" if name == "coreml" else "*"
            files = [path] if path.is_file() else [f for f in path.rglob(pattern) if f.is_file()]
            files += [path.with_suffix(".bin")] if name == "openvino" else []
            bits = 8 * sum(f.stat().st_size for f in files) / weight.numel()
            found[name] = bits, error_of(weight, _reader(name)(path))
    return found


def error_of(weight: Tensor, decoded: Any) -> float:
    """Return the mean squared error over the variance; zeros have to be zero."""
    decoded = torch.as_tensor(decoded).double()
    assert not decoded[weight == 0].any()
    return float((decoded - weight).square().mean() / weight.double().var())


def _reader(backend: str) -> Callable[[Path], Any]:
    if backend == "packed":
        return lambda path: read_checkpoint(path).palettized["0.weight"].decode()
    if backend == "coreai":
        from coreai_backend import read_weights as read_coreai

        return lambda path: read_coreai(path)["0.weight"]
    if backend == "openvino":
        from openvino_backend import read_weights as read_openvino

        return lambda path: read_openvino(path)["0.weight"]
    if backend == "onnx":
        return _run_onnx
    from coreml_backend import read_weights as read_coreml

    return lambda path: read_coreml(path)["0.weight"]


def _run_onnx(path: Path) -> Any:
    """Return the weight by its columns, each of which is an output."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    rows = np.eye(given.shape[1], dtype=np.float32)[:, None]
    return np.concatenate([session.run(None, {given.name: row})[0] for row in rows]).T.copy()


if __name__ == "__main__":
    main()
