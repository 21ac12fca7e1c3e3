"""What every command takes: -h, -v, -q, --debug, --strict; each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow  # a process for each call

FACTORY = """
    import torch
    from torch import nn

    def load():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 16)), torch.randn(2, 20)

    def broken():
        return mistaken_name

    def hushed():
        import logging
        logging.getLogger().setLevel(logging.CRITICAL)
        return load()
"""
CONFIG = """
    kmeans_palettization_config:
      global_config:
        op_state_spec:
          weight: {granularity: {type: per_grouped_channel, group_size: 16}}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(textwrap.dedent(FACTORY))
    (tmp_path / "config.yaml").write_text(textwrap.dedent(CONFIG))

    def call(*args: str, columns: int = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "palette_core", *args],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": str(columns)},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


PALETTIZE = ("palettize", "model.py:load", "-o", "out.safetensors", "-c", "config.yaml")


def test_warnings_are_errors_where_they_are_to_be(run, tmp_path):
    told = run(*PALETTIZE, "--strict")
    assert told.returncode == 2
    assert "--strict takes this warning as an error: 0.weight (30, 20) stays dense" in told.stderr
    assert not (tmp_path / "out.safetensors").exists()
    assert run("--strict", *PALETTIZE).returncode == 2
    assert run(*PALETTIZE).returncode == 0
    assert (tmp_path / "out.safetensors").exists()


def test_little_and_much_is_told(run):
    usual, quiet, verbose = run(*PALETTIZE), run(*PALETTIZE, "-q"), run(*PALETTIZE, "-vv")
    assert [each.returncode for each in (usual, quiet, verbose)] == [0, 0, 0]
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert "stays dense" in usual.stderr
    assert "1.weight" in usual.stdout.replace("\n", "")
    assert "traced" not in usual.stderr
    for step in ("traced: 3 modules", "planned: ", "1.weight: ", "writing out.safetensors"):
        assert step in " ".join(verbose.stderr.split())
    steps = run(*PALETTIZE, "-v").stderr
    assert "traced" in steps
    assert "1.weight: " not in steps


def test_warnings_are_told_whatever_a_library_does_to_all_loggers(run):
    told = run("palettize", "model.py:hushed", *PALETTIZE[2:])
    assert told.returncode == 0
    assert "stays dense" in told.stderr


def test_json_is_printed_where_nothing_else_is(run):
    assert run(*PALETTIZE, "-q", "--json").stdout.startswith("{")


def test_where_an_error_comes_from(run):
    short = run("palettize", "model.py:broken", "-o", "out.safetensors")
    long = run("palettize", "model.py:broken", "-o", "out.safetensors", "--debug")
    assert short.returncode == long.returncode == 2
    assert "Traceback" not in short.stderr
    assert "return mistaken_name" in long.stderr
    assert short.stderr in long.stderr


@pytest.mark.parametrize("command", [(), ("inspect",)])
def test_help_by_one_letter(run, command):
    short, long = run(*command, "-h"), run(*command, "--help")
    assert (short.returncode, short.stdout) == (0, long.stdout)
    for option in ("--verbose", "--quiet", "--debug", "--strict"):
        assert option in short.stdout


def test_shells_can_complete(run):
    assert "--install-completion" in run("-h", columns=100).stdout
