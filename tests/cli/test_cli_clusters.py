"""``palette palettize-checkpoint --executor``: work of a cluster, with the files of one process."""

from __future__ import annotations

from pathlib import Path

import joblib
import pytest
from checkpoint_folders import CONFIG, content, write_folder

from palette_core import palettize_checkpoint

distributed = pytest.importorskip("distributed")
RAY = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20}


@pytest.fixture
def start(tmp_path: Path) -> tuple[str, ...]:
    write_folder(tmp_path / "src")
    CONFIG.to_yaml(tmp_path / "config.yaml")
    return "palettize-checkpoint", "src", "-c", "config.yaml", "-o", "out", "--executor"


@pytest.mark.slow
def test_a_cluster_writes_the_files_of_one_process(command, start, tmp_path: Path) -> None:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        code, _, err = command(*start, cluster.scheduler_address.replace("tcp://", "dask://"))
    assert code == 0, err
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "here")
    assert content(tmp_path / "out") == content(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"ray_remote_args": {"max_restarts": 1}}])
def test_ray_writes_the_files_of_one_process(tmp_path: Path, options) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.util.joblib").register_ray()
    write_folder(tmp_path / "src")
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "here")
    with ray.init(**RAY), joblib.parallel_config(backend="ray", **options):
        palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out", num_workers=2)
    assert content(tmp_path / "out") == content(tmp_path / "here")


@pytest.mark.slow
def test_a_scheduler_without_workers_is_refused(command, start, tmp_path: Path) -> None:
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        code, _, err = command(*start, cluster.scheduler_address.replace("tcp://", "dask://"))
    assert code != 0
    assert "has no workers" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["spark://there:1", "dask://", "ray://", "there:1"])
def test_other_addresses_are_refused(command, start, tmp_path: Path, address: str) -> None:
    code, _, err = command(*start, address)
    assert code == 2
    assert "--executor is dask://HOST:PORT or ray://HOST:PORT" in err
    assert not (tmp_path / "out").exists()


def test_a_scheduler_that_is_not_there_is_told(command, start, monkeypatch) -> None:
    monkeypatch.setattr("palette_core.cli.executors._PATIENCE", "100 ms")
    code, _, err = command(*start, "dask://127.0.0.1:1")
    assert code != 0
    assert "no scheduler of dask answers at dask://127.0.0.1:1" in err
