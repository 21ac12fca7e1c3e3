"""`VectorKMeansConfig`: where it may stand, and what it changes."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import palette_core
import palette_core.config
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    OpKMeansPalettizerConfig,
    PalettizationSpec,
    VectorKMeansConfig,
    allocate,
    read_checkpoint,
)
from palette_core.errors import PlanError

PAIRS = PalettizationSpec(n_bits=6, cluster_dim=2)


def module(spec=PAIRS, **more):
    states = {"weight": spec}
    return ModuleKMeansPalettizerConfig(op_state_spec=states, enable_fast_kmeans_mode=False, **more)


def prepared(spec=PAIRS, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    config = KMeansPalettizerConfig(global_config=module(spec, **more))
    palettizer = KMeansPalettizer(model, config)
    before = model[0].weight.detach().clone()
    palettizer.prepare((torch.ones(1, 64),))
    return palettizer, float((model[0].weight.detach() - before).square().sum())


def test_it_is_the_reference_s():
    assert palette_core.config.VectorKMeansConfig is VectorKMeansConfig
    made = VectorKMeansConfig()
    assert made.model_dump() == {"n_local_trials": None, "n_init": 5, "max_iter": 300, "tol": 1e-4}
    assert VectorKMeansConfig(n_init="3", max_iter=2.0) == VectorKMeansConfig(n_init=3, max_iter=2)
    assert hash(made) == hash(VectorKMeansConfig())


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_init": 0},
        {"n_init": 2.5},
        {"n_local_trials": 0},
        {"max_iter": 0},
        {"tol": -1e-9},
        {"tol": float("nan")},
        {"restarts": 2},
    ],
)
def test_other_fields_and_values_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        VectorKMeansConfig(**wrong)


def test_it_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        VectorKMeansConfig().n_init = 3


def test_it_needs_a_spec_of_vectors_anywhere_in_the_module():
    scalar = PalettizationSpec()
    for make in (
        lambda: ModuleKMeansPalettizerConfig(vector_kmeans_config={}),
        lambda: module(scalar, vector_kmeans_config=VectorKMeansConfig()),
        lambda: module(None, vector_kmeans_config=VectorKMeansConfig()),
    ):
        with pytest.raises(ValidationError, match="only applies to vector palettization"):
            make()
    op = OpKMeansPalettizerConfig(op_state_spec={"weight": PAIRS})
    for place in (
        {"op_type_config": {"linear": op}},
        {"op_name_config": {"a.*": op}},
        {"module_state_spec": {"weight": PAIRS}},
    ):
        made = module(scalar, vector_kmeans_config={"n_init": 2}, **place)
        assert made.vector_kmeans_config == VectorKMeansConfig(n_init=2)


def test_assignments_are_checked_and_fail_whole():
    scalar, vectors = module(PalettizationSpec()), module(vector_kmeans_config={"n_init": 2})
    with pytest.raises(ValidationError, match="only applies"):
        scalar.vector_kmeans_config = VectorKMeansConfig()
    assert scalar.vector_kmeans_config is None
    with pytest.raises(ValidationError, match="only applies"):
        vectors.op_state_spec = {"weight": PalettizationSpec()}
    assert vectors.op_state_spec == {"weight": PAIRS}
    vectors.vector_kmeans_config = None


def test_it_is_in_yaml_plan_report_and_checkpoints(tmp_path):
    settings = VectorKMeansConfig(n_local_trials=4, n_init=2, max_iter=20, tol=1e-3)
    palettizer, _ = prepared(vector_kmeans_config=settings)
    plan = palettizer.plan["0.weight"]
    assert plan.vector_kmeans_config == settings
    assert plan.algorithm_options.model_dump() == {
        "restarts": 2,
        "trials": 4,
        "swaps": 20,
        "max_iter": 20,
        "tol": 1e-3,
    }
    row = palettizer.report.to_dict()["tensors"][0]
    assert row["vector_kmeans_config"] == settings.model_dump()
    path = palettizer.export(tmp_path / "model.safetensors", backend="packed")
    stored = read_checkpoint(path).origins["0.weight"].source.config
    assert KMeansPalettizerConfig.from_dict(stored).global_config.vector_kmeans_config == settings
    config = KMeansPalettizerConfig(global_config=module(vector_kmeans_config=settings))
    config.to_yaml(tmp_path / "config.yaml")
    assert KMeansPalettizerConfig.from_yaml(tmp_path / "config.yaml") == config


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [None, "sklearn_kmeans"])
def test_every_setting_counts(algorithm):
    if algorithm:
        pytest.importorskip("kmeans_sklearn")
    spec = PAIRS.model_copy(update={"algorithm": algorithm})
    thorough = {"n_init": 40, "n_local_trials": 30, "tol": 0.0}
    best = prepared(spec, vector_kmeans_config=thorough)[1]
    for name, value in {"n_init": 1, "n_local_trials": 1, "max_iter": 1, "tol": 1.0}.items():
        assert prepared(spec, vector_kmeans_config={**thorough, name: value})[1] > best, name


def test_without_it_nothing_changes_and_options_of_the_spec_come_first():
    plain, error = prepared()
    assert plain.plan["0.weight"].algorithm_options.model_dump()["restarts"] == 2
    assert plain.report.tensors[0].vector_kmeans_config is None
    own = PAIRS.model_copy(update={"algorithm_options": {"restarts": 7, "tol": 1e-5}})
    both, _ = prepared(own, vector_kmeans_config={"n_init": 3, "tol": 0.5})
    options = both.plan["0.weight"].algorithm_options.model_dump()
    assert (options["restarts"], options["tol"]) == (7, 1e-5)
    _, same_error = prepared(
        PAIRS.model_copy(update={"algorithm_options": {"restarts": 2, "tol": 1e-5}}),
        vector_kmeans_config={"n_init": 9},
    )
    assert same_error == error


def test_algorithms_that_take_none_are_named_with_those_that_do():
    spec = PAIRS.model_copy(update={"algorithm": "gptq"})
    with pytest.raises(PlanError, match=r"'gptq' takes no vector_kmeans_config; .*kmeans_vector"):
        prepared(spec, vector_kmeans_config={})
    with pytest.raises(PlanError, match=r"vector_kmeans_config: .*trials=5000"):
        prepared(vector_kmeans_config={"n_local_trials": 5000})
    with pytest.raises(PlanError, match=rf"vector_kmeans_config: .*max_iter={10**30}"):
        prepared(vector_kmeans_config={"max_iter": 10**30})


def test_a_budget_keeps_it_and_leaves_it_out_where_all_become_scalars():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    config = KMeansPalettizerConfig(global_config=module(vector_kmeans_config={"n_init": 2}))
    for dim, kept in ((2, VectorKMeansConfig(n_init=2)), (1, None)):
        made = allocate(
            model,
            config,
            (torch.ones(1, 64),),
            target_bpw=8,
            candidates=[{"n_bits": n, "cluster_dim": dim} for n in (2, 4)],
        )
        found = {entry.vector_kmeans_config for entry in made.config.module_name_configs.values()}
        assert found == {kept}
