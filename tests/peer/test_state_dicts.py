"""What coreai-opt has prepared goes on here: `prepare(state_dict=)`, and settings of vectors."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rows": {"granularity": (0, 4)},
    "columns": {"granularity": (1, 4)},
    "pairs": {"cluster_dim": 2},
    "channel scale": {"enable_per_channel_scale": True},
    "int8": {"lut": {"dtype": torch.int8, "qscheme": "symmetric"}, "granularity": (0, 4)},
    "uint8": {"lut": {"dtype": torch.uint8, "qscheme": "asymmetric"}, "granularity": (1, 4)},
    "clipped": {"lut": {"dtype": torch.int8, "qscheme": "symmetric_with_clipping"}},
    "e4m3": {"lut": {"dtype": torch.float8_e4m3fn, "qscheme": "symmetric"}},
    "sparse": {"sparsity_detection_threshold": 0.3, "granularity": (0, 4)},
}


def both() -> tuple[SimpleNamespace, SimpleNamespace]:
    import coreai_opt.palettization as theirs
    import coreai_opt.palettization.config as their_config
    import coreai_opt.palettization.spec as their_spec
    import coreai_opt.quantization as their_quantization

    import palette_core as ours

    merged = {**vars(theirs), **vars(their_config), **vars(their_spec)}
    names = {name: getattr(ours, name) for name in ours.__all__}
    quantization = their_quantization.QuantizationSpec
    return SimpleNamespace(**names), SimpleNamespace(**merged | {"QuantizationSpec": quantization})


def config(library: Any, n_bits: int = 2, vectors: Any = None, **fields: Any) -> Any:
    spec = dict(fields)
    if "granularity" in spec:
        axis, size = spec["granularity"]
        spec["granularity"] = library.PerGroupedChannelGranularity(axis=axis, group_size=size)
    if "lut" in spec:
        spec["lut_qspec"] = library.QuantizationSpec(**spec.pop("lut"))
    made = library.PalettizationSpec(n_bits=n_bits, **spec)
    module = library.ModuleKMeansPalettizerConfig(
        op_state_spec={"weight": made},
        enable_fast_kmeans_mode=made.cluster_dim == 1,
        vector_kmeans_config=vectors,
    )
    return library.KMeansPalettizerConfig(global_config=module)


def model(kind: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    if kind == "linear":
        made, inputs = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.ones(1, 8)
    else:
        made, inputs = nn.Sequential(nn.Conv2d(8, 8, 3)), torch.ones(1, 8, 5, 5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter[parameter.abs() < 0.5 * parameter.abs().max()] = 0
    return made, (inputs,)


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("name", SPECS)
def test_a_model_that_it_has_prepared_is_prepared_here(name: str, kind: str) -> None:
    ours, theirs = both()
    other, inputs = model(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.KMeansPalettizer(other, config(theirs, **SPECS[name])).prepare(inputs)
    mine, _ = model(kind)
    palettizer = ours.KMeansPalettizer(mine, config(ours, **SPECS[name]))
    palettizer.prepare(inputs, state_dict=other.state_dict())
    assert torch.equal(mine[0].weight, other[0].weight)
    assert torch.allclose(mine(*inputs), other(*inputs), atol=1e-6)


@pytest.mark.peer
@pytest.mark.parametrize("even", [True, False])
def test_its_pairs_of_nonzeros_are_taken_over_where_none_has_a_zero(even: bool) -> None:
    ours, theirs = both()
    spec = {"sparsity_detection_threshold": 0.3, "granularity": (0, 4), "cluster_dim": 2}
    layer = nn.Linear(16, 8, bias=False)
    with torch.no_grad():
        apart = layer.weight.reshape(8, 4, 4)
        apart.scatter_(2, apart.abs().argsort(dim=2)[..., :2], 0.0)
        if not even:
            layer.weight[0, layer.weight[0].abs().argmax()] = 0.0
    mine, other = (nn.Sequential(copy.deepcopy(layer)) for _ in range(2))
    inputs = (torch.ones(1, 16),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.KMeansPalettizer(other, config(theirs, **spec)).prepare(inputs)
    palettizer = ours.KMeansPalettizer(mine, config(ours, **spec))
    if not even:
        with pytest.raises(RuntimeError, match="zeros and other values are mixed"):
            palettizer.prepare(inputs, state_dict=other.state_dict())
        return
    palettizer.prepare(inputs, state_dict=other.state_dict())
    assert torch.equal(mine[0].weight, other[0].weight)
    assert torch.equal(mine[0].weight == 0, layer.weight == 0)


@pytest.mark.peer
@pytest.mark.parametrize("settings", [None, {"n_init": 1}, {"n_local_trials": 1}, {"tol": 0.0}])
def test_settings_of_vectors_serve_no_worse_here(settings: dict[str, Any] | None) -> None:
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(5))
    errors = []
    for library in both():
        layer = nn.Linear(64, 128, bias=False)
        layer.weight = nn.Parameter(weight.clone())
        vectors = None if settings is None else library.VectorKMeansConfig(**settings)
        made = config(library, n_bits=4, vectors=vectors, cluster_dim=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.KMeansPalettizer(layer, made).prepare((torch.ones(1, 64),))
        errors.append(float((layer.weight - weight).square().sum()))
    assert errors[0] <= errors[1] * 1.002
