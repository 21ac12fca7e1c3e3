"""prepare(): what it returns, what it refuses, and what it leaves alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from palettizer_models import (
    EVERYTHING_INPUTS,
    EVERYTHING_NAMES,
    MLP_INPUTS,
    QUANTIZED,
    Everything,
    assert_untouched,
    decoded_weights,
    everything_config,
    everything_prepared,
    mlp,
    overwritten,
    prepared_mlp,
    snapshot,
    squared_error,
    weight_config,
)
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    PerGroupedChannelGranularity,
    read_checkpoint,
)
from palette_core.errors import (
    PaletteWarning,
    StateError,
    TracingError,
    WeightError,
)
from palette_core.plugins import Granularity
from palette_core.storage.sites import palette_sites
from palette_core.tensors.layout import Shape


def test_returns_the_same_object_in_place() -> None:
    model = mlp()
    assert KMeansPalettizer(model).prepare(MLP_INPUTS) is model
    assert [site.names for site in palette_sites(model)] == [("0.weight",), ("2.weight",)]


def test_the_default_config_is_four_bits_per_tensor() -> None:
    palettizer = KMeansPalettizer(mlp())
    model = palettizer.prepare(MLP_INPUTS)
    assert len(model[0].weight.unique()) == 16
    assert {t.spec.n_bits for t in palettizer.plan} == {4}


def test_every_kind_of_layer_computes_with_its_decoded_weight() -> None:
    _, model = everything_prepared()
    weights = decoded_weights(model)
    assert set(weights) == EVERYTHING_NAMES
    assert all(len(w.unique()) <= 4 for w in weights.values())
    dense = overwritten(Everything().eval(), weights)
    torch.testing.assert_close(model(*EVERYTHING_INPUTS), dense(*EVERYTHING_INPUTS))


def test_every_weight_is_its_nearest_entry_and_every_entry_a_mean() -> None:
    original = mlp()[0].weight.detach().double()
    _, model = prepared_mlp(n_bits=3)
    item = palette_sites(model)[0].palette
    palettized = item.palettized()
    lut = palettized.lut.flatten().double()
    assert torch.equal(lut, lut.sort().values)
    nearest = (original[..., None] - lut).abs()
    chosen = nearest.gather(-1, palettized.indices.long()[..., None])[..., 0]
    assert torch.equal(chosen, nearest.min(dim=-1).values)
    for entry in palettized.indices.unique().tolist():
        mean = original[palettized.indices == entry].mean()
        assert abs(float(mean - lut[entry])) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_dtypes(dtype: torch.dtype) -> None:
    inputs = (MLP_INPUTS[0].to(dtype),)
    model = KMeansPalettizer(mlp().to(dtype), weight_config(n_bits=3)).prepare(inputs)
    item = palette_sites(model)[0].palette
    assert item.lut.dtype is dtype
    assert model[0].weight.dtype is dtype
    assert model(*inputs).dtype is dtype
    dense = mlp().to(dtype)[0].weight
    assert squared_error(model[0].weight, dense) < 0.1 * squared_error(0 * dense, dense)


@pytest.mark.parametrize("quantized", QUANTIZED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_quantized_tables_decode_close_to_plain_ones(quantized: str, dtype: torch.dtype) -> None:
    inputs = (MLP_INPUTS[0].to(dtype),)
    weight = mlp()[0].weight
    errors = []
    for spec in ({}, {"lut_qspec": QUANTIZED[quantized]}):
        model = KMeansPalettizer(mlp().to(dtype), weight_config(n_bits=3, **spec)).prepare(inputs)
        assert model[0].weight.dtype is dtype
        errors.append(squared_error(model[0].weight, weight))
    assert errors[0] * 0.99 <= errors[1] <= errors[0] * 1.1


def test_keyword_inputs() -> None:
    model = KMeansPalettizer(mlp(), weight_config()).prepare({"input": MLP_INPUTS[0]})
    assert sum(len(site.names) for site in palette_sites(model)) == 2


def test_training_flags_and_statistics_are_not_moved() -> None:
    model = Everything().train()
    model.attention.eval()
    before = [m.training for m in model.modules()]
    statistics = model.bn.running_mean.clone()
    KMeansPalettizer(model, everything_config()).prepare(EVERYTHING_INPUTS)
    assert [m.training for n, m in model.named_modules() if "parametrizations" not in n] == before
    assert torch.equal(model.bn.running_mean, statistics)
    assert int(model.bn.num_batches_tracked) == 0


@pytest.mark.usefixtures("untouched_rng")
@pytest.mark.parametrize("spec", [{}, {"cluster_dim": 2, "fast": False}])
def test_global_random_states_are_not_moved(spec: dict[str, object]) -> None:
    state = torch.get_rng_state()
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 8))
    torch.set_rng_state(state)
    KMeansPalettizer(model.train(), weight_config(**spec)).prepare(MLP_INPUTS)


def test_equal_seeds_give_equal_vectors_whatever_the_global_state() -> None:
    indices = []
    for global_seed in (1, 2):
        model = mlp()
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        prepared = KMeansPalettizer(model, weight_config(cluster_dim=2, fast=False)).prepare(
            MLP_INPUTS
        )
        indices.append([site.palette.indices for site in palette_sites(prepared)])
    assert all(torch.equal(a, b) for a, b in zip(*indices, strict=True))


def test_works_under_inference_mode_and_trains_afterwards() -> None:
    model = mlp()
    with torch.inference_mode():
        KMeansPalettizer(model, weight_config()).prepare(MLP_INPUTS)
        first = model.eval()(*MLP_INPUTS)
    model.train()(*MLP_INPUTS).sum().backward()
    assert model[0].bias.grad is not None
    assert torch.equal(first, model.eval()(*MLP_INPUTS))


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize("model", [None, "model", nn.Linear])
def test_what_is_not_a_module_is_refused(model: object) -> None:
    with pytest.raises(TypeError, match=r"Model must be a torch\.nn\.Module, got"):
        KMeansPalettizer(model)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [[], 4, weight_config().global_config])
def test_what_is_not_a_config_is_refused(config: object) -> None:
    with pytest.raises(TypeError, match=r"config must be a KMeansPalettizerConfig, .*, got"):
        KMeansPalettizer(mlp(), config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_workers", "kind", "message"),
    [
        (0, ValueError, "num_workers must be >= 1, got 0"),
        (-2, ValueError, "num_workers must be >= 1, got -2"),
        (1.5, TypeError, r"num_workers must be an integer, got 1\.5"),
        ("2", TypeError, "num_workers must be an integer, got '2'"),
        (True, TypeError, "num_workers must be an integer, got True"),
        (None, TypeError, "num_workers must be an integer, got None"),
    ],
)
def test_wrong_numbers_of_workers(num_workers: object, kind: type, message: str) -> None:
    model = mlp()
    before = snapshot(model)
    with pytest.raises(kind, match=message):
        KMeansPalettizer(model).prepare(MLP_INPUTS, num_workers=num_workers)  # type: ignore[arg-type]
    assert_untouched(model, before)


@pytest.mark.parametrize("inputs", [None, "x", 3])
def test_example_inputs_that_are_none(inputs: object) -> None:
    with pytest.raises(TypeError, match="example_inputs must be a tuple"):
        KMeansPalettizer(mlp()).prepare(inputs)  # type: ignore[arg-type]


def test_example_inputs_that_do_not_fit() -> None:
    model = mlp()
    before = snapshot(model)
    with pytest.raises(TracingError, match="Sequential failed on example_inputs"):
        KMeansPalettizer(model).prepare((torch.zeros(2, 3),))
    assert_untouched(model, before)


def test_preparing_twice() -> None:
    palettizer, model = prepared_mlp()
    before = decoded_weights(model)
    for second in (palettizer, KMeansPalettizer(model, weight_config(n_bits=4))):
        with pytest.raises(StateError, match="already been prepared"):
            second.prepare(MLP_INPUTS)
    assert all(torch.equal(before[n], w) for n, w in decoded_weights(model).items())


def test_preparing_a_part_of_a_model_makes_the_whole_prepared() -> None:
    model = mlp()
    KMeansPalettizer(model[2], weight_config()).prepare((torch.zeros(1, 16),))
    with pytest.raises(StateError, match="already been prepared"):
        KMeansPalettizer(model).prepare(MLP_INPUTS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[1, 3] = bad
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(WeightError, match=rf"^2\.weight: 1 of 64 weights .* {bad} at \(1, 3\)"):
        KMeansPalettizer(model).prepare(MLP_INPUTS)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    config = weight_config()
    config.set_module_name("2", None)
    assert len(palette_sites(KMeansPalettizer(model, config).prepare(MLP_INPUTS))) == 1


def test_shapes_that_do_not_fit_are_skipped_with_a_warning_and_listed() -> None:
    palettizer = KMeansPalettizer(
        mlp(), weight_config(granularity=PerGroupedChannelGranularity(axis=0, group_size=8))
    )
    with pytest.warns(PaletteWarning, match=r"2\.weight \(4, 16\) stays dense.*group_size 8"):
        model = palettizer.prepare(MLP_INPUTS)
    assert [skipped.name for skipped in palettizer.report.skipped] == ["2.weight"]
    assert [name for site in palette_sites(model) for name in site.names] == ["0.weight"]
    assert type(model[2]) is nn.Linear


def test_report_measures_what_was_done() -> None:
    palettizer = KMeansPalettizer(mlp(), weight_config(n_bits=3))
    model = palettizer.prepare(MLP_INPUTS)
    original = mlp()
    for row, at in zip(palettizer.report.tensors, (0, 2), strict=True):
        weight = original[at].weight
        noise = squared_error(weight, model[at].weight)
        expected = 10 * np.log10(squared_error(weight, 0 * weight) / noise)
        assert row.snr_db == pytest.approx(expected, abs=1e-3)
        assert row.dense_bytes == weight.numel() * 4
        assert row.palettized_bytes == weight.numel() * 3 / 8 + 8 * 4


def test_a_config_that_palettizes_nothing_prepares_and_finalizes() -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    palettizer = KMeansPalettizer(model, KMeansPalettizerConfig(global_config=None))
    with pytest.warns(PaletteWarning, match="nothing is palettized: no rule of the config"):
        palettizer.prepare(MLP_INPUTS)
    assert palettizer.finalize(backend="packed") is model
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_supported_modules() -> None:
    supported = KMeansPalettizer.supported_modules()
    assert nn.Linear in supported
    assert nn.MultiheadAttention in supported
    assert nn.LSTM not in supported


class Halves(Granularity):
    """A user's own, which nobody registers."""

    type: str = "halves"

    def block_shape(self, shape: Shape, default_axis: int) -> Shape:
        return (shape[0] // 2, *shape[1:])

    def describe(self, default_axis: int) -> str:
        return "halves"


def test_a_granularity_that_nobody_registers_is_palettized_and_stored(tmp_path) -> None:
    palettizer = KMeansPalettizer(mlp(), weight_config(granularity=Halves(), n_bits=2))
    model = palettizer.prepare(MLP_INPUTS)
    assert all(site.palette.palettized().lut.shape[0] == 2 for site in palette_sites(model))
    origins = [site.palette.origin for site in palette_sites(model)]
    assert not any("halves" in name for origin in origins for name in origin.source.plugins)
    palettizer.export(tmp_path / "halves.safetensors", backend="packed")
    assert len(read_checkpoint(tmp_path / "halves.safetensors").origins) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("power", [-150, -140, -130, -126, 120])
def test_scales_of_weights_at_the_ends_of_their_dtype_are_found(power, dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 8, bias=False).to(dtype)
    wide = torch.randn(8, 16, dtype=torch.float64).clamp(-2, 2)
    wide[:, :3], wide[1] = 0.0, 0.0
    weight = (wide * 2.0**power).to(dtype)
    model.weight.data = weight.clone()
    config = weight_config(n_bits=4, enable_per_channel_scale=True, preserve_zero=True)
    found = KMeansPalettizer(model, config).prepare((torch.zeros(1, 16, dtype=dtype),)).weight
    assert (found - weight).double().square().sum() <= weight.double().square().sum()
