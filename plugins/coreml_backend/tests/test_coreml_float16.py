"""float16 programs: weights that float16 does not hold stay in float32."""

from __future__ import annotations

import copy

import coremltools as ct
import numpy as np
import pytest
import torch
from coreml_cases import INT8
from mil_evaluator import run_package
from torch import Tensor, nn

import coreml_backend
from coreml_backend import precision
from palette_core import KMeansPalettizer, KMeansPalettizerConfig, PalettizationSpec
from palette_core import ModuleKMeansPalettizerConfig as Module
from palette_core.tensors import PalettizedTensor

SIZES = {"1": 1.0, "1e-4": 1e-4, "1e-5": 1e-5, "1e-6": 1e-6, "1e-8": 1e-8, "1e5": 1e5}
SPECS = {
    "floats": PalettizationSpec(),
    "scale per channel": PalettizationSpec(enable_per_channel_scale=True),
    "int8": PalettizationSpec(lut_qspec=INT8),
}


def export(model: nn.Module, x: Tensor, spec: PalettizationSpec, path, **options: object):
    config = KMeansPalettizerConfig(global_config=Module(op_state_spec={"weight": spec}))
    palettizer = KMeansPalettizer(model, config)
    palettizer.prepare((x,))
    options = {"deployment_target": "iOS26", **options}
    return palettizer.export(path, (x,), backend="coreml", backend_options=options)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("size", SIZES)
def test_weights_of_any_size_are_kept(size, spec, tmp_path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    layer.weight.data.normal_().mul_(SIZES[size])
    model = nn.Sequential(nn.ReLU(), layer).eval()
    path = export(model, torch.randn(2, 64), SPECS[spec], tmp_path / "m.mlpackage")
    stored = coreml_backend.read_weights(path)["1.weight"].astype(np.float64)
    wanted = layer.weight.detach().double().numpy()
    lost = np.linalg.norm(stored - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert lost.max() < 2**-10


@pytest.mark.parametrize("target", ["iOS18", "iOS26"])
@pytest.mark.parametrize("threshold", [None, 0.2], ids=["dense", "sparse"])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1.7e-5, 1e-7])
def test_small_weights_of_float16_models_with_8_bit_tables_are_kept(
    size, threshold, target, tmp_path
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    layer.weight.data.normal_().mul_(torch.rand(64, 64) > 0.4).mul_(size)
    model = nn.Sequential(layer, nn.ReLU()).half().eval()
    form = "indices" if threshold is None else "sparse"
    spec = PalettizationSpec(
        n_bits=4, lut_qspec=INT8, sparsity_detection_threshold=threshold, stored_form=form
    )
    x = torch.randn(2, 64).half()
    path = export(model, x, spec, tmp_path / "m.mlpackage", deployment_target=target)
    stored = coreml_backend.read_weights(path)["0.weight"].astype(np.float64)
    wanted = layer.weight.detach().double().numpy()
    assert np.linalg.norm(stored - wanted) < 2**-10 * np.linalg.norm(wanted)
    if size < 1e-4:
        assert np.array_equal(stored, wanted)


def test_one_weight_beyond_float16(tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)).eval()
    model[1].weight.data[3, 5] = 1e5
    path = export(model, torch.randn(2, 16), SPECS["floats"], tmp_path / "m.mlpackage")
    stored = coreml_backend.read_weights(path)
    assert stored["0.weight"].dtype == np.float16
    assert stored["1.weight"].dtype == np.float32
    assert np.array_equal(stored["1.weight"], model[1].weight.detach().numpy())


class Moved(nn.Module):
    """The weight is turned before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.layer.weight.reshape(4, 4, 16).flatten(0, 1)


def test_a_weight_that_is_moved_before_it_is_used(tmp_path) -> None:
    torch.manual_seed(0)
    model = Moved().eval()
    model.layer.weight.data.mul_(1e-7)
    x = torch.randn(2, 16) * 1e3
    path = export(model, x, SPECS["floats"], tmp_path / "m.mlpackage")
    (got,) = run_package(path, [x.numpy()]).values()
    np.testing.assert_allclose(got, model(x).detach(), rtol=2e-2, atol=1e-7)


def test_ordinary_layers_compute_in_float16_and_named_operations_do_not(tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Softmax(-1), nn.Linear(16, 16)).eval()
    # An entry of a table next to nothing does not make a layer slow.
    model[0].weight.data[0, 0] = 1e-9
    x = torch.randn(2, 16)
    spec = PalettizationSpec(n_bits=8)
    for names in ((), ("softmax",)):
        made = copy.deepcopy(model)
        path = export(made, x, spec, tmp_path / "m.mlpackage", float32_operations=names)
        package = ct.models.MLModel(str(path), skip_model_load=True)
        function = package.get_spec().mlProgram.functions["main"]
        (block,) = function.block_specializations.values()
        kinds = {
            op.type: op.outputs[0].type.tensorType.dataType
            for op in block.operations
            if op.type in ("linear", "softmax")
        }
        float16, float32 = 10, 11
        assert kinds == {"linear": float16, "softmax": float32 if names else float16}


@pytest.mark.parametrize("least", [1e-5, 1e-2], ids=["one small channel", "none"])
def test_channels_are_judged_a_few_at_a_time(least, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(precision, "_AT_ONCE", 3 * 64)
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    layer.weight.data.normal_().mul_(1e-2)
    layer.weight.data[50].mul_(least / 1e-2)
    spec = SPECS["scale per channel"]
    path = export(nn.Sequential(layer).eval(), torch.randn(2, 64), spec, tmp_path / "m.mlpackage")
    stored = coreml_backend.read_weights(path)["0.weight"]
    assert stored.dtype == (np.float32 if least < 1e-3 else np.float16)


def palettized(shape, grid, vector: int, sizes: Tensor, seed: int) -> PalettizedTensor:
    """Return a weight of random entries, the tables of each group of channels times a size."""
    some = torch.Generator().manual_seed(seed)
    lut = torch.randn(*grid, 16, vector, generator=some)
    lut = lut * sizes.reshape(-1, *[1] * (lut.dim() - 1))
    lut[..., 0, :] = 1e-9  # beyond float16
    indices = torch.randint(16, (shape[0] // vector, *shape[1:]), generator=some)
    return PalettizedTensor(indices.to(torch.uint8), lut, 4, 0, torch.float32)


@pytest.mark.parametrize("exponent", range(-9, 7))
@pytest.mark.parametrize(
    ("shape", "grid", "vector"),
    [
        ((8, 200), (4, 1), 1),
        ((8, 40), (4, 2), 1),
        ((8, 12, 3, 3), (4, 1, 1, 1), 2),
        ((8,), (4,), 1),
    ],
    ids=["long", "two tables", "vectors", "one axis"],
)
def test_a_few_values_never_say_more_than_all(shape, grid, vector, exponent, monkeypatch) -> None:
    sizes = torch.tensor([1.0, 3.0, 0.3, 1.7]) * 10.0**exponent
    for seed in range(5):
        weight = palettized(shape, grid, vector, sizes, seed)
        weight.check()
        large = precision._is_large(weight)
        with monkeypatch.context() as patched:
            patched.setattr(precision, "_is_large", lambda p: False)
            patched.setattr(precision, "_is_before_ios26", lambda: False)
            assert precision.fits_float16(weight) or not large
        if len(shape) > 1:
            assert large or not -3 <= exponent <= 3
            assert not large or -5 < exponent < 5


def test_a_channel_that_is_small_is_looked_at_as_a_whole() -> None:
    weight = palettized((8, 200), (4, 1), 1, torch.tensor([1.0, 1.0, 1e-5, 1.0]), 0)
    assert not precision._is_large(weight)
    assert precision._is_large(palettized((8, 200), (4, 1), 1, torch.ones(4), 0))
