"""Scales fitted with tables and indices: against ranges, a plain alternation, and arithmetic."""

import numpy as np
import pytest
import torch

import palette_core as pc
from palette_core.errors import PaletteWarning
from palette_core.storage import read_checkpoint

KMeans = pytest.importorskip("sklearn.cluster").KMeans

GROUPS = {"type": "per_grouped_channel", "axis": 0, "group_size": 16}
COLUMNS = {"type": "per_grouped_channel", "axis": 1, "group_size": 16}


def palettized(weight, *, batches=None, **spec):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    config = pc.KMeansPalettizerConfig(
        global_config=pc.ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": pc.PalettizationSpec(**spec)}, enable_fast_kmeans_mode=False
        )
    )
    model = torch.nn.Sequential(layer)
    palettizer = pc.KMeansPalettizer(model, config)
    inputs = (torch.zeros(1, weight.shape[1], dtype=weight.dtype),)
    if batches is not None:
        palettizer.calibrate(batches)
    palettizer.prepare(inputs)
    return palettizer, model


def error(model, weight):
    return float((model[0].weight.detach().double() - weight.double()).square().sum())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "spec",
    [
        {"enable_per_channel_scale": True},
        {"scale_block_size": 32},
        {"scale_block_size": 32, "granularity": GROUPS},
        {"scale_block_size": 32, "granularity": COLUMNS},
        {"scale_block_size": 64, "n_bits": 2},
        {"scale_block_size": 64, "lut_qspec": pc.QuantizationSpec()},
        {"scale_block_size": 64, "n_bits": 2, "cluster_dim": 2},
        {"scale_block_size": 64, "algorithm": "sklearn_kmeans"},
    ],
    ids=str,
)
def test_fitted_scales_are_never_worse_than_ranges(spec):
    pytest.importorskip("kmeans_sklearn")
    weight = normal(64, 128) * torch.rand(64, 1, generator=torch.Generator().manual_seed(1))
    found = {}
    for fit in ("range", "least_squares"):
        _, model = palettized(weight, scale_fit=fit, **spec)
        found[fit] = error(model, weight)
    assert found["least_squares"] < found["range"]


def in_turn(x, k, rounds):
    """The plainest way: scikit-learn on x / s weighted by s², then s by least squares."""
    scale = np.abs(x).max(1, keepdims=True)
    for _ in range(rounds):
        points = (x / scale).reshape(-1, 1)
        weights = np.broadcast_to(scale**2, x.shape).reshape(-1)
        found = KMeans(k, n_init=3, random_state=0).fit(points, sample_weight=weights)
        d = found.cluster_centers_[found.labels_].reshape(x.shape)
        scale = (x * d).sum(1, keepdims=True) / (d * d).sum(1, keepdims=True)
    return float(((x - scale * d) ** 2).sum())


@pytest.mark.parametrize("size", [32, 128])
def test_the_error_is_not_above_that_of_a_plain_alternation(size):
    weight = normal(32, 128)
    plain = in_turn(weight.double().numpy().reshape(-1, size), 8, 20)
    _, model = palettized(weight, n_bits=3, scale_block_size=size)
    assert error(model, weight) <= 1.005 * plain


def test_a_file_holds_float16_factors_and_gives_the_weight_back(tmp_path):
    weight = normal(64, 128)
    palettizer, _ = palettized(weight, scale_block_size=32)
    final = palettizer.finalize(backend="packed")
    path = pc.save_checkpoint(final, tmp_path / "model.safetensors")
    read = read_checkpoint(path).palettized["0.weight"]
    assert read.scale.dtype == torch.float16
    assert read.scale.shape == (64, 4)
    assert torch.equal(read.decode(), final[0].weight)
    fresh = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False))
    pc.load_checkpoint(path, fresh)
    assert torch.equal(fresh[0].weight, final[0].weight)
    tables = 16 * 32
    scales = 64 * 4 * 16
    assert pc.bits_per_weight(final) == pytest.approx(4 + (tables + scales) / weight.numel())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    weight = (normal(32, 64) * 0.02).to(dtype)
    palettizer, model = palettized(weight, n_bits=6, scale_block_size=32)
    assert error(model, weight) < 0.003 * float(weight.double().square().sum())
    assert palettizer.finalize(backend="packed")[0].weight.dtype == dtype


def test_blocks_of_zeros_stay_zero_and_pull_no_entry():
    weight = normal(32, 64)
    weight[:, 16:32] = 0.0
    _, model = palettized(weight, scale_block_size=16)
    assert not model[0].weight[:, 16:32].any()
    dense = torch.cat([weight[:, :16], weight[:, 32:]], 1)
    _, other = palettized(dense.contiguous(), scale_block_size=16)
    assert error(model, weight) == pytest.approx(error(other, dense), rel=1e-3)


def test_pruned_weights_stay_zero():
    weight = normal(32, 64)
    weight[normal(32, 64, seed=3) < 0.3] = 0.0
    _, model = palettized(weight, scale_block_size=16, preserve_zero=True)
    assert not model[0].weight[weight == 0].any()


@pytest.mark.parametrize("algorithm", ["gptq", "lnq"])
@pytest.mark.parametrize("spec", [{"enable_per_channel_scale": True}, {"scale_block_size": 16}])
def test_outputs_are_nearer_with_scales_fitted_to_them(algorithm, spec):
    weight = normal(48, 64)
    mix = normal(64, 64, seed=5) / 8
    batches = [(normal(64, 64, seed=10 + i) @ mix,) for i in range(4)]

    def lost(**more):
        _, model = palettized(weight, n_bits=3, batches=batches, **spec, **more)
        gap = model[0].weight.detach() - weight
        return sum(float((x @ gap.T).square().sum()) for (x,) in batches)

    aware = lost(algorithm=algorithm)
    assert aware < lost(algorithm=algorithm, scale_fit="range")
    assert aware < 0.9 * lost()


def test_sizes_that_do_not_divide_are_named():
    with pytest.warns(
        PaletteWarning, match=r"scale_block_size=48 .* these do: 2, 4, 8, 16, 32, 64"
    ):
        palettized(normal(8, 64), scale_block_size=48)
    with pytest.raises(ValueError, match="scale_block_size"):
        pc.PalettizationSpec(scale_block_size=1)


def test_a_large_weight_is_fitted_by_a_sample_as_well_as_in_full(monkeypatch):
    from palette_core.engine import fitted_scales

    weight = normal(256, 256)
    _, model = palettized(weight, scale_block_size=32)
    monkeypatch.setattr(fitted_scales, "_SAMPLE", 1 << 13)
    _, sampled = palettized(weight, scale_block_size=32)
    assert error(sampled, weight) < 1.01 * error(model, weight)


def test_factors_of_the_largest_float16_weights_stay_finite():
    weight = (normal(32, 64).sign() * 6e4 * torch.linspace(0.9, 1.09, 64)).half()
    assert bool(weight.isfinite().all())
    for spec in ({"enable_per_channel_scale": True}, {"scale_block_size": 16}):
        _, model = palettized(weight, n_bits=1, **spec)
        assert bool(model[0].weight.isfinite().all())


@pytest.mark.parametrize("spec", [{}, {"sparsity_detection_threshold": 0.3}])
def test_float64_weights_have_the_factors_of_float32_ones(spec):
    weight = normal(16, 64)
    weight[weight.abs() < 0.6] = 0
    spec = {"n_bits": 3, "enable_per_channel_scale": True, **spec}
    (_, narrow), (_, wide) = (palettized(w, **spec) for w in (weight, weight.double()))
    assert wide[0].weight.dtype is torch.float64
    assert error(wide, weight) == pytest.approx(error(narrow, weight), rel=1e-3)
