"""Clustering in this process, in worker processes and in threads: the same result."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import joblib
import pytest
import torch
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    QuantizationSpec,
)
from palette_core.engine import executor as execution
from palette_core.engine.cluster_tensor import cluster_tensor
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.engine.results import Clustered
from palette_core.errors import ClusteringError, WeightError
from palette_core.planning import Plan
from palette_core.plugins.catalog import get_catalog
from palette_core.tensors.palettized import PalettizedTensor
from palette_core.tensors.sensitivities import Sensitivity


class Model(nn.Sequential):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(8, 32), nn.Linear(32, 16), nn.Linear(16, 4))
        self.to(dtype)


def planned(dtype: torch.dtype = torch.float32, **spec: object) -> tuple[Plan, list[Job]]:
    model = Model(dtype)
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(
            op_state_spec={"weight": PalettizationSpec(**{"n_bits": 2, **spec})},
            enable_fast_kmeans_mode="cluster_dim" not in spec,
        )
    )
    plan = KMeansPalettizer(model, config).make_plan((torch.zeros(1, 8, dtype=dtype),))
    weights = dict(model.named_parameters())
    return plan, [Job(tensor, weights[tensor.name].detach()) for tensor in plan]


def parts(tensor: PalettizedTensor) -> list[Tensor]:
    found = (tensor.indices, tensor.lut, tensor.lut_scale, tensor.lut_zero_point, tensor.scale)
    return [part.view(torch.uint8) for part in found if part is not None]


def assert_same(a: list[Clustered], b: list[Clustered]) -> None:
    for one, other in zip(a, b, strict=True):
        assert one.palettized.dtype is other.palettized.dtype
        for x, y in zip(parts(one.palettized), parts(other.palettized), strict=True):
            assert torch.equal(x, y)
        assert one.squared_error == other.squared_error


@pytest.fixture
def workers_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any amount of work be worth a worker."""
    monkeypatch.setattr(execution, "_WORTH_A_WORKER", 0)


CASES = [
    (torch.float32, {}),
    (torch.bfloat16, {"enable_per_channel_scale": True}),
    (torch.float16, {"lut_qspec": QuantizationSpec(dtype="float8_e4m3fn")}),
    (torch.float32, {"cluster_dim": 2}),
]


@pytest.mark.slow
@pytest.mark.usefixtures("workers_always")
def test_two_workers_give_the_bytes_of_one() -> None:
    for dtype, spec in CASES:  # one test, so that the worker processes are started once
        _, jobs = planned(dtype, **spec)
        jobs[0] = replace(jobs[0], sensitivity=Sensitivity(torch.rand(32, 8), ""))
        done: list[str] = []
        alone = Executor().run(jobs)
        together = Executor(2).run(jobs, lambda name, _, done=done: done.append(name))
        assert_same(alone, together)
        assert sorted(done) == ["0.weight", "1.weight", "2.weight"]


@pytest.mark.usefixtures("workers_always")
def test_two_workers_prepare_the_model_of_one() -> None:
    states = []
    for workers in (1, 2):
        model = KMeansPalettizer(Model()).prepare((torch.zeros(1, 8),), num_workers=workers)
        states.append(model.state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], t) for name, t in states[1].items())


@pytest.mark.slow
@pytest.mark.usefixtures("workers_always")
def test_errors_in_workers_are_of_the_same_kind_and_name_the_tensor() -> None:
    _, jobs = planned()
    bad = jobs[1].weight.clone()
    bad[0, 0] = float("nan")
    jobs[1] = replace(jobs[1], weight=bad)
    for workers in (1, 2):
        with pytest.raises(WeightError, match=r"^1\.weight: 1 of 512 weights"):
            Executor(workers).run(jobs)


def test_any_other_error_becomes_one_that_names_the_tensor() -> None:
    _, jobs = planned()
    jobs[2] = replace(jobs[2], sensitivity=Sensitivity(torch.ones(3), ""))  # of the wrong shape
    with pytest.raises(ClusteringError, match=r"^2\.weight: RuntimeError") as caught:
        Executor().run(jobs)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_results_come_in_the_order_of_the_jobs() -> None:
    plan, jobs = planned()
    results = Executor().run(jobs)
    for tensor, job, result in zip(plan, jobs, results, strict=True):
        assert result.palettized.shape == tensor.shape
        assert_same([result], [cluster_tensor(Job(tensor, job.weight), get_catalog())])


def test_little_work_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_in_workers", None)
    _, jobs = planned()
    assert len(Executor(8).run(jobs)) == 3


def test_the_callers_joblib_backend_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    _, jobs = planned()
    threads: set[int] = set()
    here = execution._here

    def noted(*args: object) -> object:
        threads.add(threading.get_ident())
        return here(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(execution, "_here", noted)
    with joblib.parallel_config(backend="threading"):
        together = Executor(2).run(jobs)
    assert threads
    assert threading.get_ident() not in threads
    assert_same(Executor().run(jobs), together)


def test_inputs_are_not_written_to() -> None:
    _, jobs = planned(cluster_dim=2)
    kept = [job.weight.clone() for job in jobs]
    Executor().run(jobs)
    assert all(torch.equal(job.weight, before) for job, before in zip(jobs, kept, strict=True))


def test_no_jobs() -> None:
    assert Executor().run([]) == []
    assert Executor(3).run([]) == []


@pytest.mark.parametrize("good", [1, 2, 64])
def test_numbers_of_workers(good: int) -> None:
    assert Executor(good).num_workers == good


SCRIPT = """
import torch
from palette_core import KMeansPalettizer
from palette_core.engine import executor as execution
print("started")
execution._WORTH_A_WORKER = 0
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
KMeansPalettizer(model).prepare((torch.zeros(1, 8),), num_workers=2)
print("palettized", sum(hasattr(m, "parametrizations") for m in model))
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_returns(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["started", "palettized 2"]
