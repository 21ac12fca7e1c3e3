"""Dense checkpoints that are not clear, whole or dense: refused by name, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_folders import CONFIG, write_folder
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from palette_core import palettize_checkpoint
from palette_core.cli.app import app
from palette_core.errors import CheckpointError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def leave_an_older_file(src: Path) -> None:
    save_file({"a.weight": torch.zeros(4, 4)}, src / "model.safetensors")


def hold_a_name_twice(src: Path) -> None:
    save_file(load_file(src / FIRST) | load_file(src / SECOND), src / SECOND)


def cut(src: Path) -> None:
    (src / SECOND).write_bytes((src / SECOND).read_bytes()[:-10])


def lose_a_shard(src: Path) -> None:
    (src / SECOND).unlink()


def lose_the_index(src: Path) -> None:
    (src / INDEX).unlink()


def name_what_is_not_there(src: Path) -> None:
    index = json.loads((src / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = SECOND
    (src / INDEX).write_text(json.dumps(index))


def be_quantized(src: Path) -> None:
    (src / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (leave_an_older_file, CheckpointError, "model.safetensors.*left over"),
        (hold_a_name_twice, CheckpointError, r"model\.(embed_tokens|norm|layers)"),
        (cut, CheckpointError, SECOND),
        (lose_a_shard, FileNotFoundError, SECOND),
        (lose_the_index, CheckpointError, "without their index"),
        (name_what_is_not_there, CheckpointError, "lm_head.weight"),
        (be_quantized, CheckpointError, "quantized already .*gptq"),
    ],
)
def test_such_a_source_is_refused(
    tmp_path: Path, change: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    write_folder(tmp_path / "src")
    change(tmp_path / "src")
    with pytest.raises(error, match=message):
        palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_plans_writes_and_refuses_as_the_function_does(tmp_path: Path) -> None:
    write_folder(tmp_path / "src")
    command = ["palettize-checkpoint", str(tmp_path / "src")]
    planned = CliRunner().invoke(app, [*command, "--plan", "--json"])
    assert planned.exit_code == 0, planned.output
    assert not (tmp_path / "out").exists()
    written = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "out"), "--json"])
    assert written.exit_code == 0, written.output
    told = json.loads(written.stdout)["totals"]
    assert told["palettized_bytes"] < told["dense_bytes"]
    assert CliRunner().invoke(app, command).exit_code == 2  # neither --output nor --plan
    verified = ["verify", str(tmp_path / "src"), str(tmp_path / "out")]
    assert CliRunner().invoke(app, verified).exit_code == 0
    shard = next((tmp_path / "out").glob("palette-*.safetensors"))
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    assert CliRunner().invoke(app, verified).exit_code == 1
