"""Packages that exist, made by coremltools alone, and palettized without their model."""

from __future__ import annotations

import coremltools as ct
import numpy as np
import pytest
import torch
from coreml_cases import INT8
from mil_evaluator import run_package
from torch import Tensor, nn

from coreml_backend import programs
from coreml_backend.reading import read_weights
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
)
from palette_core.errors import BackendError, PlanError
from palette_core.programs import palettize_program, plan_program

X = (torch.linspace(-1, 1, 32).reshape(2, 16),)
ROWS = {"type": "per_grouped_channel", "axis": 0, "group_size": 8}


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.conv = nn.Linear(16, 64), nn.Conv1d(8, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.linear(x).relu().reshape(2, 8, 8))


@pytest.fixture(scope="module", params=["float32", "float16"])
def plain(request, tmp_path_factory):
    program = torch.export.export(Mixed().eval(), X).run_decompositions({})
    precision = {"float32": ct.precision.FLOAT32, "float16": ct.precision.FLOAT16}
    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=precision[request.param],
    )
    path = tmp_path_factory.mktemp("plain") / f"{request.param}.mlpackage"
    model.save(str(path))
    return path


def config(spec):
    module = ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    return KMeansPalettizerConfig(global_config=module)


def palettized_model(spec, dtype):
    """Return the torch model, its weights rounded as the package stores them, palettized."""
    model = Mixed().eval().to(dtype)
    KMeansPalettizer(model, config(spec)).prepare((X[0].to(dtype),))
    return model


@pytest.mark.parametrize(
    "spec",
    [
        PalettizationSpec(n_bits=4),
        PalettizationSpec(n_bits=3, granularity=ROWS),
        PalettizationSpec(n_bits=8, lut_qspec=INT8),
    ],
    ids=lambda spec: f"{spec.n_bits} bits",
)
def test_weights_are_those_of_the_palettized_model(spec, plain, tmp_path):
    out = tmp_path / "small.mlpackage"
    if plain.stem == "float16" and spec.lut_qspec is not None:
        with pytest.raises(BackendError, match="does not decode to its palettized values"):
            palettize_program(plain, out, config(spec))  # Core ML rounds the scale
        return
    report = palettize_program(plain, out, config(spec))
    assert len(report.tensors) == 2
    dtype = getattr(torch, plain.stem)
    model = palettized_model(spec, dtype)
    wanted = {w.shape: w.detach().numpy() for w in (model.linear.weight, model.conv.weight)}
    for name, weight in read_weights(out).items():
        assert np.array_equal(weight, wanted[torch.Size(weight.shape)]), name
    if plain.stem == "float32":
        (got,) = run_package(out, [X[0].numpy()]).values()
        assert np.allclose(got, model(*X).detach().numpy(), atol=1e-5)


def test_the_plan_tells_what_consumes_each_weight(plain):
    found = {item.op_type: (item.shape, item.axis) for item in plan_program(plain)}
    assert found == {"linear": ((64, 16), 0), "conv1d": ((24, 8, 3), 0)}


def test_what_a_target_cannot_store_is_refused_before_anything_is_clustered(plain, tmp_path):
    spec = PalettizationSpec(n_bits=3)
    with pytest.raises(PlanError, match="3 bits: iOS17 cannot store it"):
        palettize_program(
            plain, tmp_path / "s.mlpackage", config(spec),
            backend_options={"deployment_target": "iOS17"},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_would_not_decode_leaves_nothing(plain, tmp_path, monkeypatch):
    real = programs.emit

    def wrong(tensor, name):
        return real(type(tensor)(**{**vars(tensor), "lut": tensor.lut + 1}), name)

    monkeypatch.setattr(programs, "emit", wrong)
    with pytest.raises(BackendError, match="does not decode to its palettized values"):
        palettize_program(plain, tmp_path / "s.mlpackage")
    assert list(tmp_path.iterdir()) == []
