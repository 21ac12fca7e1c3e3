"""A few of the failures of `run.py`."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from worker_attack import odd_errors

from palette_core.engine import executor as execution


@pytest.mark.slow
def test_whatever_workers_raise_is_an_error_of_ours(monkeypatch):
    # Those that die, and what cannot be sent to them, have tests beside the executor's.
    monkeypatch.setattr(execution, "_WORTH_A_WORKER", 0)
    made = random.Random(1)
    assert [odd_errors(made)[1] for _ in range(3)] == [""] * 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs forked processes")
def test_processes_that_share_a_folder_keep_their_own_weights():
    # In a process of its own: this one may have had workers, and threads that do not fork.
    command = [sys.executable, Path(__file__).with_name("run.py"), "folders", "--count", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "folders: 10 shared_folder: right; 0 broken" in done.stdout
