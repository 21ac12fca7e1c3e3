"""`palette palettize` that was killed goes on with the same command."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from palette_core import KMeansPalettizer

pytestmark = pytest.mark.slow  # a process for each call

FACTORY = """
    import os
    import torch
    from torch import nn

    from palette_core.engine import executor
    from palette_core.engine.cluster_tensor import cluster_here

    def load():
        torch.manual_seed(0)
        layers = [nn.Linear(32, 32) for _ in range(6)]
        return nn.Sequential(*layers), {"input": torch.randn(2, 32)}

    def batches():
        made = torch.Generator().manual_seed(1)
        return [{"input": torch.randn(8, 32, generator=made)} for _ in range(2)]

    left = int(os.environ.get("LEFT", "-1"))

    def counted(job, catalog):
        global left
        if left == 0:
            os.kill(os.getpid(), 9)
        left -= 1
        print("CLUSTERED", job.plan.name)
        return cluster_here(job, catalog)

    executor.cluster_here = counted
"""


@pytest.fixture
def run(tmp_path: Path):
    (tmp_path / "model.py").write_text(textwrap.dedent(FACTORY))
    plain = textwrap.dedent(FACTORY).partition("left = ")[0]
    (tmp_path / "plain.py").write_text(plain)
    lnq = "{n_bits: 3, algorithm: lnq}"
    (tmp_path / "lnq.yaml").write_text(
        "kmeans_palettization_config:\n  global_config:\n    op_state_spec:\n      weight: " + lnq
    )

    def call(*arguments: str, left: int = -1) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "palette_core", "palettize", "model.py:load", *arguments],
            cwd=tmp_path,
            env={**os.environ, "LEFT": str(left), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


BY_DATA = ("-c", "lnq.yaml", "--calibration", "model.py:batches", "--sequential")


def test_a_killed_command_goes_on_and_writes_the_same_file(run, tmp_path) -> None:
    killed = run(*BY_DATA, "-o", "out.safetensors", left=4)
    assert killed.returncode == -9
    assert not (tmp_path / "out.safetensors").exists()
    kept = list((tmp_path / ".out.safetensors.unfinished").iterdir())
    assert len(kept) == 4
    kept[0].write_bytes(kept[0].read_bytes()[:-1])  # of a power cut: none, and made again
    done = run(*BY_DATA, "-o", "out.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CLUSTERED") == 6 - 4 + 1
    assert not list(tmp_path.glob(".out*"))

    made = runpy.run_path(str(tmp_path / "model.py").replace("model.py", "plain.py"))
    model, inputs = made["load"]()
    palettizer = KMeansPalettizer(model, tmp_path / "lnq.yaml")
    palettizer.calibrate(made["batches"](), sequential=True)
    palettizer.prepare(inputs)
    whole = palettizer.export(tmp_path / "whole.safetensors")
    assert whole.read_bytes() == (tmp_path / "out.safetensors").read_bytes()
