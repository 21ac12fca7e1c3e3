"""Finalized models in the hands of others: torch.export, plain converters, copies, 16 bits."""

from __future__ import annotations

import copy
import pickle

import coreai_support as support
import numpy as np
import pytest
import torch
from torch import nn

from coreai_backend import read_weights
from coreai_backend.ir import quiet
from coreai_backend.operators import DENSE as NAME
from palette_core import KMeansPalettizer, PalettizationSpec, QuantizationSpec
from palette_core.errors import BackendError

with quiet():
    import coreai_torch

X = (torch.linspace(-1, 1, 48).reshape(3, 16),)
SPECS = [
    PalettizationSpec(n_bits=4),
    PalettizationSpec(n_bits=3, enable_per_channel_scale=True, lut_qspec=QuantizationSpec()),
    PalettizationSpec(n_bits=2, cluster_dim=2),
]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def finalized(spec: PalettizationSpec) -> nn.Module:
    palettizer = KMeansPalettizer(mlp(), support.config(spec))
    palettizer.prepare(X)
    return palettizer.finalize(backend="coreai")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.n_bits} bits")
def test_a_plain_converter_takes_a_finalized_model(spec, tmp_path):
    model = finalized(spec)
    with quiet():
        program = torch.export.export(model, X).run_decompositions(coreai_torch.get_decomp_table())
        asset = coreai_torch.TorchConverter().add_exported_program(program).to_coreai()
    asset.save_asset(tmp_path / "plain.aimodel")
    weights = read_weights(tmp_path / "plain.aimodel")
    for name, tensor in support.palettes(model).items():
        assert support.same_values(weights[name], tensor.decode())
    (got,) = support.run_file(tmp_path / "plain.aimodel", *X)
    assert np.allclose(got, model(*X).detach().numpy(), atol=1e-5)


def test_weights_are_compressed_state_to_tools_that_look_at_graphs():
    graph = torch.export.export(finalized(SPECS[0]), X).graph
    targets = [n.target for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    palettes = [t for t in targets if t.name() == NAME]
    assert len(palettes) == 2
    assert {(t.namespace, t._opname) for t in palettes} == {("coreai", "lut_to_dense")}


def test_indices_stay_packed_and_the_model_computes_as_before():
    palettizer = KMeansPalettizer(mlp(), support.config(SPECS[0]))
    prepared = palettizer.prepare(X)
    before = prepared(*X)
    model = palettizer.finalize(backend="coreai")
    assert torch.equal(model(*X), before)
    assert model[0].parametrizations["weight"][0].indices.numel() == 16 * 32 // 2
    program = torch.export.export(model, X)
    assert torch.equal(program.module()(*X), before)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*X), before)
        assert NAME in [str(getattr(n.target, "name", str)()) for n in
                        torch.export.export(other, X).graph.nodes]  # fmt: skip


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("spec", SPECS[:2], ids=lambda spec: f"{spec.n_bits} bits")
def test_a_file_in_16_bits(precision, spec, tmp_path):
    model = mlp()
    options = {"compute_precision": precision}
    path = support.exported(model, X, tmp_path / "m.aimodel", spec, backend_options=options)
    half = copy.deepcopy(model).to(getattr(torch, precision))
    weights = read_weights(path)
    for name, tensor in support.palettes(half).items():
        assert support.same_values(weights[name], tensor.decode())
    assert model[2].bias.dtype is torch.float32
    if precision == "float16":  # the runtime hands out no bfloat16 to numpy
        (got,) = support.run_file(path, X[0].half())
        assert got.dtype == np.float16
        assert np.allclose(got, model(*X).detach().numpy(), atol=2e-2)


def test_what_float16_cannot_hold_is_refused_by_name(tmp_path):
    model = mlp()
    with torch.no_grad():
        model[0].bias[3] = 1e6
    with pytest.raises(BackendError, match=r"0\.bias has 1e\+06, which float16 cannot hold"):
        support.exported(model, X, tmp_path / "m.aimodel",
                         backend_options={"compute_precision": "float16"})  # fmt: skip
    assert not (tmp_path / "m.aimodel").exists()
