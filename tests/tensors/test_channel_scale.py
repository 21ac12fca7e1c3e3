"""Per-channel scales, channels of zeros included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    QuantizationSpec,
)


def prepared(module, inputs, **spec):
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={
                "weight": PalettizationSpec(
                    enable_per_channel_scale=True, scale_fit="range", **spec
                )
            },
            enable_fast_kmeans_mode=spec.get("cluster_dim", 1) == 1,
        )
    )
    return KMeansPalettizer(module, config).prepare(inputs)


@pytest.mark.parametrize("n_bits", [1, 2, 4])
@pytest.mark.parametrize("lut_qspec", [None, QuantizationSpec(dtype="int8")])
@pytest.mark.parametrize("algorithm", [None, "kmeans_vector"])
def test_a_channel_of_zeros_stays_zero_and_pulls_nothing(n_bits, lut_qspec, algorithm):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        layer.weight.mul_(1e-3)
        layer.weight[2] = 0
    rest = nn.Linear(8, 7, bias=False)
    rest.weight = nn.Parameter(layer.weight[[0, 1, 3, 4, 5, 6, 7]].clone())
    spec = {"n_bits": n_bits, "lut_qspec": lut_qspec, "algorithm": algorithm}
    found = prepared(layer, (torch.zeros(1, 8),), **spec).weight
    assert (found[2] == 0).all()
    alone = prepared(rest, (torch.zeros(1, 8),), **spec).weight
    assert torch.allclose(found[[0, 1, 3, 4, 5, 6, 7]], alone, rtol=1e-5)


def test_all_zero_weights_stay_zero():
    layer = nn.Linear(8, 8, bias=False)
    nn.init.zeros_(layer.weight)
    assert (prepared(layer, (torch.zeros(1, 8),), n_bits=2).weight == 0).all()


@pytest.mark.parametrize(
    ("module", "axis"), [(nn.Conv2d(4, 8, 3), 0), (nn.ConvTranspose2d(4, 8, 3), 1)]
)
def test_scales_are_the_largest_magnitudes_of_output_channels(module, axis):
    weight = module.weight.detach().clone()
    found = prepared(module, (torch.zeros(1, 4, 6, 6),), n_bits=4)
    others = [d for d in range(4) if d != axis]
    scale = found.parametrizations.weight[0].scale
    assert torch.equal(scale, weight.abs().amax(others, keepdim=True))
    error = (found.weight - weight).abs() / scale
    assert error.max() < 0.2


def test_scaling_a_channel_scales_its_decoded_weights():
    torch.manual_seed(0)
    one, other = nn.Linear(16, 8, bias=False), nn.Linear(16, 8, bias=False)
    factors = torch.tensor([1.0, 2, 4, 8, 0.5, 0.25, 1024, 1])[:, None]
    other.weight = nn.Parameter(one.weight.detach() * factors)
    a = prepared(one, (torch.zeros(1, 16),), n_bits=3).weight
    b = prepared(other, (torch.zeros(1, 16),), n_bits=3).weight
    assert torch.equal(a * factors, b)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float64, 1e200), (torch.float64, 1e-200), (torch.float64, 1e150), (torch.float32, 1e37),
     (torch.float32, 1e-37), (torch.bfloat16, 1e37), (torch.float16, 1e4)],
)  # fmt: skip
def test_extreme_magnitudes_prepare_and_report(dtype, size):
    torch.manual_seed(0)
    layer = nn.Linear(16, 16, bias=False).double()
    with torch.no_grad():
        layer.weight.mul_(size * 4)
    layer.to(dtype)
    exact = layer.weight.detach().clone()
    palettizer = KMeansPalettizer(layer)
    found = palettizer.prepare((torch.zeros(1, 16, dtype=dtype),)).weight
    assert ((found - exact).double().abs() / size).max() < 0.2
    (row,) = palettizer.report.tensors
    if 1e-150 < size < 1e150:  # the squares themselves fit a float64
        assert 15 < row.snr_db < 40
    palettizer.report.to_dict()
