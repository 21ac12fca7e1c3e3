"""Models that coreai-opt has pruned, finalized or not: palettized with every zero, and exported."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.storage import palette_sites

X = (torch.linspace(-1, 1, 256).reshape(4, 64),)
SPEC = PalettizationSpec(n_bits=2, sparsity_detection_threshold=0.3)
RULES = ModuleKMeansPalettizerConfig(op_state_spec={"weight": SPEC})
CONFIG = KMeansPalettizerConfig(global_config=RULES)


def pruned(backend: str | None) -> nn.Module:
    from coreai_opt import ExportBackend
    from coreai_opt.pruning import MagnitudePruner, MagnitudePrunerConfig

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = MagnitudePruner(model, MagnitudePrunerConfig())
        made: nn.Module = pruner.prepare(X)
        if backend is not None:
            made = pruner.finalize(backend=ExportBackend[backend])
    return made


@pytest.mark.peer
@pytest.mark.parametrize("backend", [None, "CoreAI", "CoreML", "Torch"])
def test_every_zero_stays_through_every_export(backend: str | None, tmp_path: Path) -> None:
    pytest.importorskip("coreai_torch")
    coreai, coreml = pytest.importorskip("coreai_backend"), pytest.importorskip("coreml_backend")
    model = pruned(backend)
    zero = model[0].weight == 0
    assert float(zero.float().mean()) == pytest.approx(0.5)
    palettizer = KMeansPalettizer(model, CONFIG)
    palettizer.prepare(X)
    assert [site.palette.form.name for site in palette_sites(model)] == ["sparse", "sparse"]
    wanted = model[0].weight.detach().clone()
    assert torch.equal(wanted == 0, zero)
    exact = {"compute_precision": "float32"}
    path = palettizer.export(tmp_path / "m.mlpackage", X, backend="coreml", backend_options=exact)
    assert torch.equal(torch.from_numpy(coreml.read_weights(path)["0.weight"]), wanted)
    path = palettizer.export(tmp_path / "m.aimodel", X, backend="coreai")
    assert torch.equal(torch.from_numpy(coreai.read_weights(path)["0.weight"]), wanted)


@pytest.mark.peer
def test_activations_are_quantized_and_sparse_weights_are_not() -> None:
    pytest.importorskip("coreai_torch")
    pytest.importorskip("coreai_backend")
    from coreai_opt.quantization import ModuleQuantizerConfig, Quantizer, QuantizerConfig

    palettizer = KMeansPalettizer(pruned("Torch"), CONFIG)
    palettizer.prepare(X)
    model = palettizer.finalize(backend="coreai")
    config = QuantizerConfig(global_config=ModuleQuantizerConfig(op_state_spec=None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = Quantizer(model, config).prepare(X).graph
    weights = [node for node in graph.nodes if "sparse_with_bitmask" in str(node.target)]
    assert len(weights) == 2
    for node in weights:
        assert [str(user.target) for user in node.users] == ["aten.linear.default"]
    assert any("activation_post_process" in node.name for node in graph.nodes)
