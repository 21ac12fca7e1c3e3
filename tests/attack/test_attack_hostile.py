"""A few of the hostile plug-ins of `run.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs forked processes")
def test_hostile_plug_ins_harm_nobody_else():
    # In a process of its own: this one may have had workers, and threads that do not fork.
    command = [sys.executable, Path(__file__).with_name("run.py"), "plug-ins", "--count", "25"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "an error of ours" in done.stdout
    assert "; 0 broken" in done.stdout
