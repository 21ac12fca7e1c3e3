"""A finalized model goes through ExecuTorch's Core ML delegate, its weights still palettized."""

from __future__ import annotations

from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from mil_evaluator import run_package
from torch import nn

from palette_core import KMeansPalettizer
from palette_core.storage import palette_sites

exir = pytest.importorskip("executorch.exir")
compiler = pytest.importorskip("executorch.backends.apple.coreml.compiler")
partition = pytest.importorskip("executorch.backends.apple.coreml.partition")
folders = pytest.importorskip("executorch.backends.apple.coreml.executorchcoreml")
pytestmark = pytest.mark.slow


def lowered(model: nn.Module, inputs: tuple[torch.Tensor, ...]):
    specs = compiler.CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT32
    )
    return exir.to_edge_transform_and_lower(
        torch.export.export(model, inputs),
        partitioner=[partition.CoreMLPartitioner(compile_specs=specs)],
    )


def test_weights_stay_palettized_in_the_delegate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 16)).eval()
    inputs = (torch.randn(1, 256),)
    palettizer = KMeansPalettizer(model)
    palettizer.prepare(inputs)
    model = palettizer.finalize(backend="coreml")

    edge = lowered(model, inputs)
    (delegate,) = (m for _, m in edge.exported_program().graph_module.named_children())
    assert folders.unflatten_directory_contents(delegate.processed_bytes, str(tmp_path))
    (manifest,) = tmp_path.rglob("Manifest.json")
    package = manifest.parent.rename(tmp_path / "m.mlpackage")
    (found,) = run_package(package, [inputs[0].numpy()]).values()
    with torch.no_grad():
        np.testing.assert_allclose(found, model(*inputs).numpy(), atol=1e-6)

    indices = sum(site.palette.indices.numel() for site in palette_sites(model))
    assert indices < len(edge.to_executorch().buffer) < 1.5 * indices
