"""Clustering in this process, in worker processes and in threads: the same result."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import joblib
import pytest
import torch
from joblib._parallel_backends import ThreadingBackend
from torch import Tensor, nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    QuantizationSpec,
)
from palette_core.engine import executor as execution
from palette_core.engine import workers
from palette_core.engine.cluster_tensor import cluster_tensor
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.engine.kept import Kept
from palette_core.engine.results import Clustered
from palette_core.errors import ClusteringError, WeightError, WorkerError
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


@pytest.mark.slow
@pytest.mark.usefixtures("workers_always")
def test_two_workers_prepare_the_model_of_one() -> None:
    states = []
    for count in (1, 2):
        model = KMeansPalettizer(Model()).prepare((torch.zeros(1, 8),), num_workers=count)
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
    for count in (1, 2):
        with pytest.raises(WeightError, match=r"^1\.weight: 1 of 512 weights"):
            Executor(count).run(jobs)


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
    monkeypatch.setattr(execution, "in_workers", None)
    _, jobs = planned()
    assert len(Executor(8).run(jobs)) == 3


def test_the_callers_joblib_backend_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    _, jobs = planned()
    threads: set[int] = set()
    here = workers.cluster_here

    def noted(*args: object) -> object:
        threads.add(threading.get_ident())
        return here(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "cluster_here", noted)
    with joblib.parallel_config(backend="threading"):
        together = Executor(2).run(jobs)
    assert threads
    assert threading.get_ident() not in threads
    assert_same(Executor().run(jobs), together)


# --- workers that fail --------------------------------------------------------------------------


class Deadly:
    """Ends the process that it is unpickled in, as a system out of memory does."""

    def __reduce__(self) -> object:
        return eval, ("__import__('os').kill(__import__('os').getpid(), 9)",)


def spoilt(jobs: list[Job], with_what: object) -> list[Job]:
    """Let the smallest job, which comes last, hold something."""
    return [*jobs[:2], replace(jobs[2], plan=replace(jobs[2].plan, rule=with_what))]


@pytest.mark.slow
@pytest.mark.usefixtures("workers_always")
def test_a_killed_worker_is_an_error_and_what_is_finished_is_kept() -> None:
    _, jobs = planned()
    done: list[str] = []
    kept = Kept()
    with pytest.raises(WorkerError, match=r"worker process ended .* num_workers=1") as caught:
        Executor(1 + 1, kept=kept).run(spoilt(jobs, Deadly()), lambda name, _: done.append(name))
    assert isinstance(caught.value, ClusteringError)
    assert "\n" not in str(caught.value)
    again: list[str] = []
    results = Executor(2, kept=kept).run(jobs, lambda name, _: again.append(name))
    assert_same(results, Executor().run(jobs))
    assert sorted(again) == ["0.weight", "1.weight", "2.weight"]
    assert {job.plan.name for job in jobs if kept.find(job) is not None} == set(done)


class DeadlyOnce:
    """Ends the first process that it is unpickled in."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        mark = repr(str(self.mark))
        ends = "__import__('os').kill(__import__('os').getpid(), 9)"
        return eval, (
            f"__import__('os').path.exists({mark}) or (open({mark}, 'x').close(), {ends})",
        )


@pytest.mark.slow
@pytest.mark.usefixtures("workers_always")
def test_work_of_a_killed_worker_is_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, jobs = planned()
    jobs = [*jobs, *jobs, *jobs]
    deadly = replace(jobs[3].plan, rule=DeadlyOnce(tmp_path / "x"))  # type: ignore[arg-type]
    done: list[str] = []
    caplog.set_level(logging.WARNING, logger="palette_core")  # a quiet command may have raised it
    found = Executor(2).run(
        [*jobs[:3], replace(jobs[3], plan=deadly), *jobs[4:]], lambda name, _: done.append(name)
    )
    assert_same(found, Executor().run(jobs))
    assert len(done) == len(jobs)
    assert "a worker process ended early" in caplog.text
    assert (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("workers_always")
def test_what_cannot_be_sent_to_a_worker_is_named() -> None:
    _, jobs = planned()
    with pytest.raises(WorkerError, match=r"2\.weight: an option of .* cannot be pickled"):
        Executor(2).run(spoilt(jobs, threading.Lock()))


@pytest.mark.usefixtures("workers_always")
def test_workers_that_fork_are_refused_and_no_workers_are_none() -> None:
    _, jobs = planned()
    with (
        joblib.parallel_config(backend="multiprocessing"),
        pytest.raises(WorkerError, match=r"MultiprocessingBackend forks .* use 'loky'"),
    ):
        Executor(2).run(jobs)
    with joblib.parallel_config(backend="sequential"):
        assert_same(Executor(2).run(jobs), Executor().run(jobs))


class AllAtOnce(ThreadingBackend):
    """As the backend of ray: no results before all are there."""

    supports_return_generator = False


def test_backends_that_give_all_results_at_once_get_some_calls_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "_AT_ONCE", 1)
    joblib.register_parallel_backend("all at once", AllAtOnce)
    _, jobs = planned()
    done: list[float] = []
    with joblib.parallel_config(backend="all at once"):
        found = Executor(2).run(jobs, lambda _, count: done.append(count))
    assert_same(found, Executor().run(jobs))
    assert len(done) == len(jobs) > 2


def test_any_failure_of_a_backend_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from asyncio import CancelledError

    _, jobs = planned()
    for raised, says in (
        (CancelledError(), "work was cancelled, by a worker or a cluster that went away"),
        (ValueError("odd"), "workers failed: ValueError: odd"),
    ):

        def fail(*_: object, raised: BaseException = raised, **__: object) -> object:
            raise raised

        monkeypatch.setattr(workers.joblib, "Parallel", fail)
        with joblib.parallel_config(backend="threading"), pytest.raises(WorkerError, match=says):
            Executor(2).run(jobs)


def test_finished_weights_are_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = Model(), (torch.zeros(1, 8),)
    names: list[str] = []
    here, fails = execution.cluster_here, True

    def noted(job: Job, catalog: object) -> Clustered:
        names.append(job.plan.name)
        if fails and job.plan.name == "2.weight":
            raise KeyboardInterrupt
        return here(job, catalog)  # type: ignore[arg-type]

    monkeypatch.setattr(execution, "cluster_here", noted)
    monkeypatch.setattr(execution, "_may_share", lambda job, catalog: False)
    palettizer = KMeansPalettizer(model)
    with pytest.raises(KeyboardInterrupt):
        palettizer.prepare(inputs)
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    names.clear()
    fails = False
    palettizer.prepare(inputs)
    assert names == ["0.weight", "2.weight"]  # one has changed, the other was never done
    fresh = Model()
    with torch.no_grad():
        fresh[0].weight[0, 0] += 1
    expected = KMeansPalettizer(fresh).prepare(inputs).state_dict()
    assert all(torch.equal(expected[name], t) for name, t in model.state_dict().items())


def test_results_by_moments_are_kept_of_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"op_state_spec": {"weight": {"algorithm": "gptq", "n_bits": 2}}}
    config = KMeansPalettizerConfig.from_dict(
        {"kmeans_palettization_config": {"global_config": spec}}
    )
    palettizer = KMeansPalettizer(Model(), config)
    palettizer.calibrate([torch.randn(64, 8)], sequential=True, stages=["0", "1", "2"])
    names: list[str] = []
    here, fails = execution.cluster_here, True

    def noted(job: Job, catalog: object) -> Clustered:
        names.append(job.plan.name)
        if fails and job.plan.name == "2.weight":
            raise MemoryError
        return here(job, catalog)  # type: ignore[arg-type]

    monkeypatch.setattr(execution, "cluster_here", noted)
    with pytest.raises(MemoryError):
        palettizer.prepare((torch.zeros(1, 8),))
    assert names == ["0.weight", "1.weight", "2.weight"]
    names.clear()
    fails = False
    palettizer.prepare((torch.zeros(1, 8),))
    assert names == ["2.weight"]


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
from palette_core.engine import workers
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
