"""``palette plan`` and ``palette palettize`` of programs that exist."""

from __future__ import annotations

import json

import pytest
import torch
from registering import register as register  # noqa: PLC0414 - a fixture for this file
from saved_states import STATES


@pytest.fixture
def path(register, tmp_path):
    register(STATES)
    torch.manual_seed(0)
    path = tmp_path / "plain.states"
    torch.save({"linear": torch.randn(16, 8), "shared": torch.randn(8, 8)}, path)
    return path


def test_plan_prints_the_table_and_the_json_of_models_and_writes_nothing(command, path, tmp_path):
    before = path.read_bytes()
    code, out, _ = command("plan", path)
    assert code == 0
    assert "linear.weight" in out
    code, out, _ = command("plan", path, "--json")
    told = json.loads(out)
    assert code == 0
    assert [t["names"] for t in told["tensors"]] == [["linear.weight"]]
    assert [t["name"] for t in told["skipped"]] == ["shared.weight"]
    assert ([p.name for p in tmp_path.iterdir()], path.read_bytes()) == ([path.name], before)


def test_plan_refuses_what_palettize_does(command, path, tmp_path):
    code, out, err = command("plan", path, "--option", "most_bits=2")
    assert (code, out) == (2, "")
    assert "indices of 4 bits" in err
    output = ("-o", tmp_path / "small.states")
    assert command("palettize", path, *output, "--option", "most_bits=2") == (code, out, err)
    for option in (("--input", "float32[1,8]"), ("--dynamic", "x:1")):
        code, _, err = command("plan", path, *option)
        assert code != 0
        assert f"{option[0]} is about a model" in err


def test_palettize_writes_what_was_planned(command, path, tmp_path):
    code, out, _ = command("palettize", path, "-o", tmp_path / "small.states")
    assert code == 0
    assert "linear.weight" in out
    state = torch.load(tmp_path / "small.states")
    assert len(state["linear"].unique()) <= 16 < len(state["shared"].unique())
