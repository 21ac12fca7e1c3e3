"""One test for each entry of "Where the reference fails its users" that is the palettizer's.

Not here: 7 (a config that fails to change, tests/config), 8 and 9 (grid and speed of scalar
clustering, tests/clustering), the speed and quality of vectors in 10 (likewise).
"""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from palettizer_models import (
    MLP_INPUTS,
    assert_untouched,
    decoded_weights,
    mlp,
    prepared_mlp,
    snapshot,
    squared_error,
    weight_config,
)
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
    bits_per_weight,
    load_checkpoint,
    save_checkpoint,
)
from palette_core.engine import workers
from palette_core.errors import PaletteWarning, SensitivityError, WeightError
from palette_core.storage.sites import palette_sites
from palette_core.tensors.palettized import PalettizedTensor


@pytest.mark.parametrize("make", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("axis", [0, 1])
def test_1_convolutions_with_vectors_and_groups_on_axis_1(
    make: type[nn.Module], axis: int, tmp_path: Path
) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return make(8, 8, 3)

    inputs = (torch.sin(torch.arange(2.0 * 8 * 5 * 5)).reshape(2, 8, 5, 5),)
    granularity = PerGroupedChannelGranularity(axis=axis, group_size=4)
    config = weight_config(n_bits=4, cluster_dim=2, granularity=granularity, fast=False)
    palettizer = KMeansPalettizer(made(), config)
    model = palettizer.prepare(inputs)
    expected, dense = model(*inputs), made()
    assert squared_error(model.weight, dense.weight) < 0.3 * squared_error(dense.weight, 0 * dense.weight)  # fmt: skip # noqa: E501
    with torch.no_grad():
        dense.weight.copy_(decoded_weights(model)["weight"])
    torch.testing.assert_close(dense(*inputs), expected)
    final = palettizer.finalize(backend="packed")
    torch.testing.assert_close(final(*inputs), expected)
    loaded = load_checkpoint(save_checkpoint(final, tmp_path / "c"), made())
    torch.testing.assert_close(loaded(*inputs), expected)


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_2_one_bad_weight_is_an_error_not_a_silent_spread(bad: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[3, 2] = bad
    with pytest.raises(WeightError, match=r"^0\.weight: 1 of 128"):
        KMeansPalettizer(model).prepare(MLP_INPUTS)


@pytest.mark.parametrize("value", [0.0, float("nan"), -1.0])
def test_3_sensitivities_with_zeros_nan_or_negative_values(value: float, tmp_path: Path) -> None:
    values = {"0.weight": torch.rand(16, 8), "2.weight": torch.rand(4, 16)}
    values["0.weight"][::2] = value
    torch.save(values, tmp_path / "s.pt")
    palettizer = KMeansPalettizer(mlp(), weight_config())
    if value == 0.0:
        model = palettizer.prepare(MLP_INPUTS, tmp_path / "s.pt")
        assert bool(torch.isfinite(model[0].weight).all())
        assert len(model[0].weight.unique()) == 4
    else:
        with pytest.raises(SensitivityError, match=r"0\.weight has"):
            palettizer.prepare(MLP_INPUTS, tmp_path / "s.pt")


def test_4_a_prepare_that_fails_can_be_tried_again_with_another_config(tmp_path: Path) -> None:
    model = mlp()
    before = snapshot(model)
    with pytest.raises(FileNotFoundError):
        KMeansPalettizer(model, weight_config(n_bits=1)).prepare(MLP_INPUTS, tmp_path / "none.pt")
    assert_untouched(model, before)
    KMeansPalettizer(model, weight_config(n_bits=3)).prepare(MLP_INPUTS)
    assert len(model[0].weight.unique()) == 8


@pytest.mark.parametrize("sigma", [1.0, 0.02, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_5_a_state_dict_round_trip_in_fast_mode_keeps_every_index(
    sigma: float, dtype: torch.dtype
) -> None:
    def made(seed: int) -> nn.Linear:
        torch.manual_seed(seed)
        layer = nn.Linear(64, 64)
        nn.init.normal_(layer.weight, std=sigma)
        return layer.to(dtype)

    inputs = (torch.ones(1, 64, dtype=dtype),)
    models = [
        KMeansPalettizer(made(seed), weight_config(n_bits=6)).prepare(inputs) for seed in (0, 1)
    ]
    file = io.BytesIO()
    torch.save(models[0].state_dict(), file)
    file.seek(0)
    models[1].load_state_dict(torch.load(file))
    a, b = (palette_sites(m)[0].palette for m in models)
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(models[0](*inputs), models[1](*inputs))


def test_6_bits_per_weight_after_finalize() -> None:
    palettizer, model = prepared_mlp(n_bits=4)
    before = bits_per_weight(model)
    assert before < 12
    assert bits_per_weight(palettizer.finalize(backend="packed")) == before


def test_7_types_and_patterns_that_match_nothing_are_told() -> None:
    config = weight_config()
    config.set_module_name("nothing", ModuleKMeansPalettizerConfig())
    config.set_module_type("torch.nn.Bilinear", ModuleKMeansPalettizerConfig())
    with pytest.warns(PaletteWarning) as caught:
        KMeansPalettizer(mlp(), config).prepare(MLP_INPUTS)
    told = " ".join(str(w.message) for w in caught)
    assert "'nothing'" in told
    assert "Bilinear" in told


def test_7_the_short_name_of_a_type_matches() -> None:
    spec = {"weight": PalettizationSpec(n_bits=1)}
    config = KMeansPalettizerConfig(global_config=None)
    config.set_module_type("torch.nn.Linear", ModuleKMeansPalettizerConfig(op_state_spec=spec))
    model = KMeansPalettizer(mlp(), config).prepare(MLP_INPUTS)
    assert len(model[0].weight.unique()) == 2


def test_10_vectors_are_the_same_from_run_to_run_and_take_sparse_sensitivities(
    tmp_path: Path,
) -> None:
    values = {"0.weight": torch.zeros(16, 8), "2.weight": torch.zeros(4, 16)}
    values["0.weight"][0, 0] = values["2.weight"][3, 5] = 1.0
    torch.save(values, tmp_path / "s.pt")
    runs = []
    for seed in (1, 2):
        model = mlp()
        torch.manual_seed(seed)
        config = weight_config(n_bits=3, cluster_dim=2, fast=False)
        runs.append(KMeansPalettizer(model, config).prepare(MLP_INPUTS, tmp_path / "s.pt"))
    first, second = (decoded_weights(model) for model in runs)
    assert all(torch.equal(first[name], weight) for name, weight in second.items())
    assert bool(torch.isfinite(runs[0](*MLP_INPUTS)).all())


def test_11_a_prepared_model_does_not_rebuild_its_weight_at_every_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, model = prepared_mlp()
    model(*MLP_INPUTS)

    def rebuilt(self: PalettizedTensor) -> torch.Tensor:
        raise AssertionError("the weight was rebuilt")

    monkeypatch.setattr(PalettizedTensor, "decode", rebuilt)
    model(*MLP_INPUTS)
    with torch.inference_mode():
        model(*MLP_INPUTS)


def test_12_two_workers_on_two_small_layers_start_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers.joblib, "Parallel", None)
    KMeansPalettizer(mlp(), weight_config()).prepare(MLP_INPUTS, num_workers=2)
    # That an unguarded script returns is in tests/engine.


@pytest.mark.slow
def test_13_needs_no_compiler_and_nothing_on_path() -> None:
    script = (
        "import torch\n"
        "from palette_core import KMeansPalettizer\n"
        "m = KMeansPalettizer(torch.nn.Linear(8, 4)).prepare((torch.zeros(1, 8),))\n"
        "assert len(m.weight.unique()) <= 16\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX")} | {"PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore::palette_core.errors.PaletteWarning")
@pytest.mark.parametrize(
    "spec",
    [
        {"granularity": PerGroupedChannelGranularity(axis=0, group_size=4)},
        {"granularity": PerGroupedChannelGranularity(axis=1, group_size=4)},
        {"enable_per_channel_scale": True},
        {"cluster_dim": 2},
    ],
)
def test_14_a_star_that_reaches_a_bias(spec: dict[str, object]) -> None:
    config = weight_config(**spec, fast=False)
    config.global_config.op_state_spec = {"*": config.global_config.op_state_spec["weight"]}
    palettizer = KMeansPalettizer(mlp(), config)
    model = palettizer.prepare(MLP_INPUTS)
    settled = {t.name for t in palettizer.plan} | {s.name for s in palettizer.plan.skipped}
    assert settled == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert {"0.weight", "2.weight"} <= {t.name for t in palettizer.plan}
    assert bool(torch.isfinite(model(*MLP_INPUTS)).all())


def test_15_saving_and_exporting_a_prepared_model(tmp_path: Path) -> None:
    _, model = prepared_mlp()
    expected = model(*MLP_INPUTS)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(*MLP_INPUTS), expected)
    with pytest.warns(PaletteWarning, match="a prepared model is being exported"):
        program = torch.export.export(copy.deepcopy(model), MLP_INPUTS)
    torch.testing.assert_close(program.module()(*MLP_INPUTS), expected)
