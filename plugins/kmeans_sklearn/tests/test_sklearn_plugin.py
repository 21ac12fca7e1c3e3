"""The plug-in as its users meet it: discovered, and picked by name in a configuration."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
    PerGroupedChannelGranularity,
)
from palette_core.errors import PaletteError, PluginOptionsError
from palette_core.plugins import get_catalog

NAMES = ("sklearn_kmeans", "sklearn_minibatch")


def small_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).to(dtype).eval()


def config_with(**spec: object) -> KMeansPalettizerConfig:
    op = OpKMeansPalettizerConfig(op_state_spec={"weight": PalettizationSpec(**spec)})
    return KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec=op.op_state_spec, enable_fast_kmeans_mode=False
        )
    )


def prepared(
    config: KMeansPalettizerConfig, **arguments: object
) -> tuple[nn.Sequential, nn.Module]:
    model = small_model()
    dense = small_model()
    palettizer = KMeansPalettizer(model, config)
    return dense, palettizer.prepare((torch.ones(1, 32),), **arguments)


def blocks_of(weight: torch.Tensor, group: int) -> list[torch.Tensor]:
    return list(weight.detach().split(group, dim=0))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_discovered_with_its_distribution(name):
    found = get_catalog().clusterers.find(name)
    assert found.distribution.name == "palette-core-kmeans-sklearn"
    assert not [q for q in get_catalog().quarantined if "sklearn" in q.distribution.name]
    assert found.entry.supports_vector
    assert found.entry.supports_importance
    assert not found.entry.supports_vector_importance
    assert not found.entry.supports_cuda


def test_importing_the_hooks_loads_nothing_but_the_hooks():
    script = (
        "import sys, palette_core.plugins; before = set(sys.modules);"
        "import kmeans_sklearn.hooks as hooks; hooks.palette_core_clusterers();"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == str(
        ["kmeans_sklearn", "kmeans_sklearn.hooks", "kmeans_sklearn.options"]
    )


@pytest.mark.parametrize("name", NAMES)
def test_picked_by_name_it_palettizes_every_group(name):
    granularity = PerGroupedChannelGranularity(group_size=8)
    config = config_with(n_bits=3, algorithm=name, granularity=granularity)
    dense, model = prepared(config)
    for index in (0, 2):
        for before, after in zip(
            blocks_of(dense[index].weight, 8), blocks_of(model[index].weight, 8), strict=True
        ):
            entries = after.unique()
            assert 2 < len(entries) <= 8
            nearest = entries[(before[..., None] - entries).abs().argmin(-1)]
            assert torch.equal(nearest, after)
    x = torch.ones(1, 32)
    assert not torch.equal(model(x), dense(x))


def test_scalar_error_is_near_the_built_in_optimum():
    def error(**spec: object) -> float:
        dense, model = prepared(config_with(n_bits=3, **spec))
        return float((dense[0].weight - model[0].weight).detach().double().square().sum())

    best = error()
    found = error(algorithm="sklearn_kmeans", algorithm_options={"n_init": 10, "tol": 0.0})
    assert best * (1 - 1e-6) <= found <= best * 1.02


@pytest.mark.parametrize("name", NAMES)
def test_vectors_share_an_index(name):
    dense, model = prepared(config_with(n_bits=4, cluster_dim=2, algorithm=name))
    pairs = model[0].weight.detach().reshape(32, 2, 32).transpose(1, 2).reshape(-1, 2)
    assert 8 < len(pairs.unique(dim=0)) <= 16
    assert not torch.equal(dense[0].weight, model[0].weight)


def test_it_is_picked_from_a_yaml_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "kmeans_palettization_config:\n"
        "  global_config:\n"
        "    op_state_spec:\n"
        "      weight:\n"
        "        n_bits: 2\n"
        "        algorithm: sklearn_kmeans\n"
        "        algorithm_options: {n_init: 5, tol: 1.0e-5}\n"
    )
    dense, model = prepared(KMeansPalettizerConfig.from_yaml(path))
    by_hand = config_with(
        n_bits=2, algorithm="sklearn_kmeans", algorithm_options={"n_init": 5, "tol": 1e-5}
    )
    assert len(model[0].weight.unique()) == 4
    assert torch.equal(model[0].weight, prepared(by_hand)[1][0].weight)
    assert not torch.equal(dense[0].weight, model[0].weight)


@pytest.mark.parametrize("name", NAMES)
def test_sensitivities_reach_it(name, tmp_path):
    dense = small_model()
    scores = {f"{i}.weight": torch.full_like(dense[i].weight, 1e-6) for i in (0, 2)}
    for value in scores.values():
        value[:4] = 1.0
    torch.save(scores, tmp_path / "scores.pt")
    config = config_with(n_bits=3, algorithm=name)
    plain = prepared(config)[1]
    heard = prepared(config, sensitivity_path=tmp_path / "scores.pt")[1]

    def error(model: nn.Module) -> float:
        return float((dense[0].weight - model[0].weight).detach()[:4].double().square().sum())

    assert error(heard) < error(plain)


def test_finalized_outputs_equal_the_prepared_models():
    config = config_with(n_bits=4, algorithm="sklearn_kmeans")
    model = small_model()
    palettizer = KMeansPalettizer(model, config)
    x = torch.linspace(-1, 1, 32)[None]
    before = palettizer.prepare((x,))(x)
    assert torch.equal(palettizer.finalize(backend="packed")(x), before)


def test_the_seed_depends_on_the_tensor_so_a_second_run_is_the_same():
    config = config_with(n_bits=4, cluster_dim=2, algorithm="sklearn_kmeans")
    assert torch.equal(prepared(config)[1][0].weight, prepared(config)[1][0].weight)


def test_a_misspelled_name_and_a_bad_option_are_refused_before_anything_changes():
    with pytest.raises(PaletteError, match="did you mean 'sklearn_kmeans'"):
        prepared(config_with(algorithm="sklearn_kmean"))
    with pytest.raises(PluginOptionsError, match="did you mean 'n_init'"):
        prepared(config_with(algorithm="sklearn_kmeans", algorithm_options={"ninit": 2}))


@pytest.mark.cuda
def test_weights_on_an_accelerator_come_back_to_it():
    config = config_with(n_bits=3, algorithm="sklearn_kmeans")
    on_host = prepared(config)[1]
    model = small_model().cuda()
    KMeansPalettizer(model, config).prepare((torch.ones(1, 32, device="cuda"),))
    assert model[0].weight.is_cuda
    assert torch.equal(model[0].weight.cpu(), on_host[0].weight)
