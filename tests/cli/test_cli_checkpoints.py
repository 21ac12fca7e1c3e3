"""Checkpoints in the place of a model, for ``palette plan`` and ``palette palettize``."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from palette_core import palettize_checkpoint, read_checkpoint
from palette_core.reporting.runs import read_run


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    torch.manual_seed(0)
    weights = {"layers.0.fc.weight": torch.randn(32, 64), "norm.weight": torch.randn(32)}
    save_file(weights, made / "model.safetensors")
    (made / "config.json").write_text("{}")
    return made


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_checkpoint_becomes_a_folder(command, folder, tmp_path, name):
    code, out, err = command("palettize", folder / name, "-o", tmp_path / "out", "--json")
    assert (code, json.loads(out)["totals"]["folder"]) == (0, str(tmp_path / "out")), err
    palettize_checkpoint(folder / name, None, tmp_path / "same")
    found, same = (read_checkpoint(tmp_path / each) for each in ("out", "same"))
    assert found.palettized.keys() == {"layers.0.fc.weight"}
    for key, tensor in found.palettized.items():
        assert torch.equal(tensor.decode(), same.palettized[key].decode())


@pytest.mark.parametrize("name", ["palettize", "palettize-checkpoint"])
def test_a_checkpoint_has_a_report_too(command, folder, tmp_path, name):
    files = ["--report", tmp_path / "run.json", "--report", tmp_path / "run.html"]
    code, out, err = command(name, folder, "-o", tmp_path / "out", "--json", *files)
    assert code == 0, err
    assert json.loads(out)["tensors"][0]["view"] is None  # long, and not for a terminal
    report = read_run(tmp_path / "run.json").report
    assert report.tensors[0].view.looked_at == 32 * 64
    assert "layers.0.fc.weight" in (tmp_path / "run.html").read_text()
    assert command(name, folder, "-o", tmp_path / "more", "--report", "x.docx")[0] == 2
    assert not (tmp_path / "more").exists()


def test_the_plan_of_a_checkpoint(command, folder):
    code, out, _ = command("plan", folder, "--json")
    rows = {row["name"]: row for row in json.loads(out)["tensors"]}
    assert code == 0
    assert rows["layers.0.fc.weight"]["n_bits"] == 4
    assert rows["norm.weight"]["n_bits"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "out.safetensors"], "becomes a folder"),
        (["-o", "out", "--input", "float32[1,3]"], "--input is about a model"),
        (["-o", "out", "--backend", "packed"], "--backend is about a model"),
    ],
)
def test_what_needs_a_model(command, folder, options, said):
    code, _, err = command("palettize", folder, *options)
    assert code == 2
    assert said in err


def test_a_folder_of_something_else_is_a_factory(command, tmp_path):
    (tmp_path / "package").mkdir()
    code, _, err = command("palettize", "package", "-o", "out.safetensors")
    assert code == 2
    assert "checkpoint" not in err
