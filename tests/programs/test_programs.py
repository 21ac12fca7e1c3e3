"""Programs that exist, palettized by a backend of the tests': no plug-in distribution is needed."""

from __future__ import annotations

import pytest
import torch
from saved_states import STATES

from palette_core import (
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    QuantizationSpec,
)
from palette_core.errors import BackendError, PlanError, WeightError
from palette_core.programs import palettize_program, plan_program


@pytest.fixture(autouse=True)
def _backend(register):
    register(STATES)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {
        "linear": torch.randn(16, 8),
        "conv": torch.randn(4, 2, 3, 3).half(),
        "shared.one": torch.randn(8, 8),
        "bias": torch.randn(16),
    }


@pytest.fixture
def saved(tmp_path):
    def save(state):
        path = tmp_path / "plain.states"
        torch.save(state, path)
        return path

    return save


def bits(n_bits, **more):
    spec = PalettizationSpec(n_bits=n_bits, **more)
    module = ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    return KMeansPalettizerConfig(global_config=module)


def test_the_plan_says_what_each_weight_gets_and_why_another_stays_dense(state, saved):
    plan = plan_program(saved(state), bits(3))
    assert {t.name: (t.shape, t.op_type, t.spec.n_bits) for t in plan} == {
        "linear.weight": ((16, 8), "linear", 3),
        "conv.weight": ((4, 2, 3, 3), "conv2d", 3),
    }
    (skipped,) = plan.skipped
    assert (skipped.name, "shared with a buffer" in skipped.reason) == ("shared.one.weight", True)


def test_the_file_holds_what_plain_clustering_gives_and_all_else_as_it_was(state, saved, tmp_path):
    path, out = saved(state), tmp_path / "small.states"
    before = path.read_bytes()
    config = bits(2, lut_qspec=QuantizationSpec(dtype=torch.int8))
    report = palettize_program(path, out, config)
    assert path.read_bytes() == before
    made = torch.load(out)
    assert {r.name for r in report.tensors} == {"linear.weight", "conv.weight"}
    for name, dense in state.items():
        assert made[name].dtype is dense.dtype
        assert torch.equal(made[name], dense) == (name in ("bias", "shared.one")), name
        if name in ("linear", "conv"):
            assert len(made[name].unique()) <= 4


def test_a_program_may_take_its_own_place(state, saved):
    path = saved(state)
    palettize_program(path, path, bits(1))
    assert len(torch.load(path)["linear"].unique()) == 2


def test_names_and_operations_of_the_program_are_those_of_rules(state, saved):
    config = KMeansPalettizerConfig.model_validate(
        {
            "module_name_configs": {"linear": {"op_state_spec": {"weight": {"n_bits": 2}}}},
            "global_config": {
                "op_state_spec": None,
                "op_type_config": {"conv2d": {"op_state_spec": {"weight": {"n_bits": 6}}}},
            },
        }
    )
    assert {t.name: t.spec.n_bits for t in plan_program(saved(state), config)} == {
        "linear.weight": 2,
        "conv.weight": 6,
    }


def test_what_the_backend_refuses_is_refused_in_planning(state, saved, tmp_path):
    path = saved(state)
    options = {"most_bits": 3}
    for call in (
        lambda: plan_program(path, bits(4), backend_options=options),
        lambda: palettize_program(path, tmp_path / "s.states", bits(4), backend_options=options),
    ):
        with pytest.raises(PlanError, match=r"linear\.weight.*indices of 4 bits"):
            call()
    assert [p.name for p in tmp_path.iterdir()] == ["plain.states"]


def test_weights_that_are_no_numbers_are_named(state, saved, tmp_path):
    state["linear"][3, 3] = torch.nan
    with pytest.raises(WeightError, match="linear"):
        palettize_program(saved(state), tmp_path / "small.states")
    assert [p.name for p in tmp_path.iterdir()] == ["plain.states"]


def test_what_is_finished_is_kept_for_another_try(state, saved, tmp_path, monkeypatch):
    from palette_core.engine import executor

    made, cluster = [], executor.cluster_here

    def counted(job, catalog):
        made.append(job.plan.name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return cluster(job, catalog)

    monkeypatch.setattr(executor, "cluster_here", counted)
    monkeypatch.setattr(executor, "_threads", lambda: 1)
    path, out = saved(state), tmp_path / "small.states"
    with pytest.raises(KeyboardInterrupt):
        palettize_program(path, out, bits(3), work_folder=tmp_path / "work")
    palettize_program(path, out, bits(3), work_folder=tmp_path / "work")
    assert len(made) == 3
    palettize_program(path, tmp_path / "whole.states", bits(3))
    pair = torch.load(out), torch.load(tmp_path / "whole.states")
    for one, two in zip(*(each.values() for each in pair), strict=True):
        assert torch.equal(one, two)


def test_a_backend_that_fails_half_way_leaves_an_older_file_as_it_was(saved, tmp_path):
    out = tmp_path / "small.states"
    out.write_bytes(b"older")
    with pytest.raises(BackendError, match=r"states.*no room for it"):
        palettize_program(saved({"breaks": torch.randn(4, 4)}), out)
    assert out.read_bytes() == b"older"
    assert {p.name for p in tmp_path.iterdir()} == {"plain.states", "small.states"}


def test_a_program_without_such_weights_is_refused_and_not_written(saved, tmp_path):
    with pytest.raises(PlanError, match=r"no weight is to be palettized.*shared"):
        palettize_program(saved({"shared": torch.randn(4, 4)}), tmp_path / "s.states")
    assert not (tmp_path / "s.states").exists()


def test_other_files_and_backends_are_named(state, saved, tmp_path):
    with pytest.raises(
        BackendError, match=r"plain\.txt: no backend palettizes.*states \(\.states\)"
    ):
        plan_program(tmp_path / "plain.txt")
    with pytest.raises(BackendError, match="'packed' palettizes"):
        plan_program(saved(state), backend="packed")
    with pytest.raises(BackendError, match=r"writes \.states, got .*small\.bin"):
        palettize_program(saved(state), tmp_path / "small.bin")
    with pytest.raises(FileNotFoundError):
        plan_program(tmp_path / "absent.states")
