"""OpenMP's threads rest while ours work, come back for torch, and are left alone after a fork."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import threadpoolctl
import torch

from palette_core._common import openmp, threads
from palette_core._common.openmp import let_openmp_rest
from palette_core.builtins.clusterers.kmeans1d import floats

TASKS = Path("/proc/self/task")


def in_a_process(code: str) -> str:
    """Return what a process of its own prints, in which torch has two threads."""
    start = "import torch\ntorch.set_num_threads(2)\nlarge = torch.randn(1000, 1000)\n"
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.returncode, done.stderr
    return done.stdout


def has_gnu_openmp() -> bool:
    return any(each["prefix"] == "libgomp" for each in threadpoolctl.threadpool_info())


@pytest.mark.skipif(not TASKS.is_dir() or not has_gnu_openmp(), reason="counts threads of libgomp")
def test_they_end_and_come_back():
    assert in_a_process("""
        import os
        from palette_core._common.openmp import let_openmp_rest
        tasks = lambda: len(os.listdir("/proc/self/task"))
        let_openmp_rest()
        before, usual = tasks(), large @ large
        at_work = tasks()
        let_openmp_rest()
        let_openmp_rest()
        resting = tasks()
        print(at_work - before, resting - before, torch.equal(large @ large, usual))
        print(tasks() - before)
    """).split() == ["1", "0", "True", "1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.parametrize("early", [True, False])
def test_a_child_waits_for_no_threads_of_its_parent(early):
    assert in_a_process(f"""
        import multiprocessing, os, signal
        if {early}:
            from palette_core._common.openmp import let_openmp_rest
        large.relu()
        def child():
            signal.alarm(60)
            from palette_core._common.openmp import let_openmp_rest
            let_openmp_rest()
            print("rested", flush=True)
        one = multiprocessing.get_context("fork").Process(target=child)
        one.start()
        one.join()
        if {early}:
            if os.fork() == 0:
                child()
                os._exit(0)
            os.wait()
    """).split() == ["rested"] * (2 if early else 1)


def test_nothing_is_asked_where_there_is_one_thread(monkeypatch):
    asked = []
    monkeypatch.setattr(openmp, "_pauses", lambda: (asked.append,))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    let_openmp_rest()
    assert not asked
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    let_openmp_rest()
    assert asked == [1]  # omp_pause_soft


class Library:
    """What ``ctypes.CDLL`` returns for a library of OpenMP 5.0, or for one before it."""

    def __init__(self, path):
        if path != "old":
            self.omp_pause_resource_all = path


@pytest.fixture
def pauses(monkeypatch):
    def of(path, prefix):
        openmp._pauses.cache_clear()
        loaded = [
            {"filepath": path, "prefix": prefix, "user_api": "openmp"},
            {"filepath": "blas", "prefix": "libopenblas", "user_api": "blas"},
        ]
        monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: loaded)
        monkeypatch.setattr(openmp.ctypes, "CDLL", Library)
        return openmp._pauses()

    yield of
    openmp._pauses.cache_clear()


def test_only_a_library_in_which_they_rest_is_asked(pauses, monkeypatch):
    assert pauses("new", "libgomp") == ("new",)
    assert pauses("old", "libgomp") == ()
    assert pauses("new", "libomp") == ()
    assert pauses("new", "libiomp") == ()
    monkeypatch.setattr(multiprocessing, "parent_process", object)  # perhaps forked
    assert pauses("new", "libgomp") == ()


def test_they_rest_but_not_for_a_thread_of_ours(monkeypatch):
    rested = []
    monkeypatch.setattr(threads, "let_openmp_rest", lambda: rested.append(True))
    threads.take_the_cores()
    assert rested == [True]
    monkeypatch.setattr(threads, "on_a_thread", lambda: True)
    threads.take_the_cores()
    assert rested == [True]


def test_they_rest_for_many_points_with_weights_which_torch_has_looked_at(monkeypatch):
    rested = []
    monkeypatch.setattr(floats, "take_the_cores", lambda: rested.append(True))
    few, many = torch.rand(1, (1 << 16) - 1), torch.rand(2, 1 << 15)
    floats.fit_floats(few, few, 4, None)
    floats.fit_floats(many, None, 4, None)
    assert not rested
    floats.fit_floats(many, many, 4, None)
    assert rested == [True]
