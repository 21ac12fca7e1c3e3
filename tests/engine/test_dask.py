"""A cluster behind joblib does the clustering, with the result of this process."""

from __future__ import annotations

import copy

import joblib
import pytest
import torch
from torch import nn

from palette_core import KMeansPalettizer, KMeansPalettizerConfig, ModuleKMeansPalettizerConfig
from palette_core.engine import workers
from palette_core.engine.executor import Executor
from palette_core.engine.jobs import Job
from palette_core.errors import WorkerError
from palette_core.spec import PalettizationSpec

distributed = pytest.importorskip("distributed")


@pytest.fixture
def cluster():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.mark.slow
def test_a_dask_cluster_gives_the_bytes_of_one_process(cluster):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 32))
    config = KMeansPalettizerConfig(
        module_name_configs={
            "0|1": ModuleKMeansPalettizerConfig(),
            "2": ModuleKMeansPalettizerConfig(
                op_state_spec={"weight": PalettizationSpec(n_bits=3, cluster_dim=2)},
                enable_fast_kmeans_mode=False,
            ),
        }
    )
    inputs = (torch.randn(2, 64),)
    here = KMeansPalettizer(copy.deepcopy(model), config).prepare(inputs)
    before = _tasks_done(cluster)
    with joblib.parallel_config(backend="dask"):
        there = KMeansPalettizer(copy.deepcopy(model), config).prepare(inputs, num_workers=2)
    assert _tasks_done(cluster) > before
    ours, theirs = here.state_dict(), there.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_cluster_that_loses_its_workers_is_an_error_of_ours(cluster, monkeypatch):
    monkeypatch.setattr(workers, "_work", lambda *_: __import__("os")._exit(1))
    layer = nn.Linear(64, 96)
    (tensor,) = KMeansPalettizer(layer).make_plan((torch.randn(2, 64),))
    with joblib.parallel_config(backend="dask"), pytest.raises(WorkerError, match="num_workers=1"):
        Executor(2).run([Job(tensor, layer.weight.detach())])


def _tasks_done(cluster) -> int:
    """Return how often a task has changed its state on the scheduler."""
    return cluster.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
