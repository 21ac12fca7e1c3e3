"""Quantized activations beside palettized weights, and graphs that tools have traced."""

from __future__ import annotations

import coremltools as ct
import numpy as np
import pytest
import torch
from mil_evaluator import run_package
from torch import Tensor, nn

import coreml_backend
from palette_core import KMeansPalettizer
from palette_core.errors import BackendError

X = torch.linspace(-1, 1, 128).reshape(4, 32)
EXACT = {"compute_precision": "float32"}


class Rounded(nn.Module):
    """What coreai-opt leaves in a model that it finalizes for Core ML."""

    def __init__(self, scale: float, zero: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((1, 1), scale))
        self.register_buffer("zero_point", torch.full((1, 1), zero, dtype=torch.int32))
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x, self.scale, self.zero_point, self.dtype).dequantize()


def network(dtype: torch.dtype = torch.qint8, zero: int = -3) -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Sequential(Rounded(0.008, zero, dtype), nn.Linear(32, 24))
    return nn.Sequential(first, nn.ReLU(), Rounded(0.02, zero, dtype), nn.Linear(24, 8)).eval()


def attribute(model: nn.Module, name: str) -> np.ndarray:
    owner, _, state = name.rpartition(".")
    return getattr(model.get_submodule(owner), state).detach().numpy()


def operations(path) -> list[str]:
    package = ct.models.MLModel(str(path), skip_model_load=True)
    (block,) = package.get_spec().mlProgram.functions["main"].block_specializations.values()
    return [op.type for op in block.operations]


@pytest.mark.parametrize(("dtype", "zero"), [(torch.qint8, -3), (torch.quint8, 125)], ids=str)
@pytest.mark.parametrize("traced", [False, True], ids=["modules", "graph"])
def test_a_package_rounds_activations_as_torch_does(dtype, zero, traced, tmp_path) -> None:
    model = network(dtype, zero)
    palettizer = KMeansPalettizer(model)
    palettizer.prepare((X,))
    palettizer.finalize(backend="coreml")
    wanted = model(X).detach()
    given = torch.export.export(model, (X,)).module() if traced else model
    path = palettizer.export(tmp_path / "m.mlpackage", (X,), model=given, backend_options=EXACT)
    (got,) = run_package(path, [X.numpy()]).values()
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert operations(path).count("quantize") == operations(path).count("dequantize") == 2
    stored = coreml_backend.read_weights(path)
    assert stored.keys() == {"0.1.weight", "3.weight"}
    for name, weight in stored.items():
        assert np.array_equal(weight, attribute(model, name))


class ByInputs(nn.Module):
    """Rounds by a scale that is computed of its inputs, which Core ML does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 8)
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        scale = y.abs().amax() / 127
        return torch.quantize_per_tensor(y, scale, self.zero, torch.qint8).dequantize()


def test_scales_of_inputs_are_refused(tmp_path) -> None:
    palettizer = KMeansPalettizer(ByInputs().eval())
    palettizer.prepare((X,))
    with pytest.raises(BackendError, match=r"no conversion for aten\.quantize_per_tensor"):
        palettizer.export(tmp_path / "m.mlpackage", (X,))
    assert not (tmp_path / "m.mlpackage").exists()
