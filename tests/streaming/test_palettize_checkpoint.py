"""Checkpoints palettized without a model: what is written, and that it is what a model gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_folders import CONFIG, content, tensors, write_folder
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    load_checkpoint,
    palettize_checkpoint,
    plan_checkpoint,
    read_checkpoint,
)
from palette_core.errors import CheckpointError, PlanError, WeightError
from palette_core.storage import open_checkpoint, verify_checkpoint

WEIGHTS = ("q_proj.weight", "up_proj.weight")


@pytest.mark.parametrize("shards", [1, 2])
def test_linear_weights_are_palettized_and_all_else_stays_as_it_is(
    tmp_path: Path, shards: int
) -> None:
    dense = write_folder(tmp_path / "src", shards=shards)
    report = palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    found = read_checkpoint(tmp_path / "out")
    assert {*found.palettized} == {name for name in dense if name.endswith(WEIGHTS)}
    assert {row.name for row in report.tensors} == {*found.palettized}
    assert all(torch.equal(tensor, dense[name]) for name, tensor in found.dense.items())
    for name, tensor in found.palettized.items():
        noise = (tensor.decode().float() - dense[name].float()).square().sum()
        assert noise < 0.02 * dense[name].float().square().sum()
    assert verify_checkpoint(tmp_path / "out").passed


def test_a_model_gives_the_same_palettes_and_takes_the_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    palettize_checkpoint(tmp_path / "model.safetensors", CONFIG, tmp_path / "out")
    loaded = load_checkpoint(
        tmp_path / "out", nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    )
    inputs = torch.randn(4, 32)
    prepared = KMeansPalettizer(model, CONFIG).prepare((inputs,), show_progress=False)
    assert torch.equal(loaded(inputs), prepared(inputs))


def test_files_are_those_that_safetensors_reads(tmp_path: Path) -> None:
    write_folder(tmp_path / "src")
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "palette.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, framework="pt") as opened:
            assert name in opened.keys()  # noqa: SIM118


def test_a_folder_is_whole_and_says_how_it_is_quantized(tmp_path: Path) -> None:
    write_folder(tmp_path / "src")
    (tmp_path / "src" / "pytorch_model.bin").write_bytes(b"weights")
    (tmp_path / "src" / "1_Pooling").mkdir()
    (tmp_path / "src" / "1_Pooling" / "config.json").write_text("{}")
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    assert {*content(tmp_path / "out")} == {
        "palette-00001-of-00002.safetensors",
        "palette-00002-of-00002.safetensors",
        "palette.safetensors.index.json",
        "palette_manifest.json",
        "config.json",
        "tokenizer.json",
        "1_Pooling/config.json",
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "qwen2_moe"
    assert config["quantization_config"]["quant_method"] == "palette"
    with pytest.raises(CheckpointError, match="palettized already"):
        plan_checkpoint(tmp_path / "out")


def test_a_folder_is_read_one_tensor_at_a_time(tmp_path: Path) -> None:
    dense = write_folder(tmp_path / "src")
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as reader:
        for name, tensor in dense.items():
            assert reader.shape(name) == tuple(tensor.shape)
        name = reader.palettized_names[0]
        assert reader.stored(name).n_bits == reader.palettized(name).n_bits == 4
        assert reader.form(name).name == "indices"


def test_configs_reach_what_rules_leave_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / "src")
    config = KMeansPalettizerConfig(
        module_name_configs={
            r".*\.mlp\.gate": ModuleKMeansPalettizerConfig(
                module_state_spec={"weight": PalettizationSpec(n_bits=6)}
            )
        },
        module_type_configs={"torch.nn.Embedding": ModuleKMeansPalettizerConfig()},
    )
    plan = plan_checkpoint(tmp_path / "src", config).by_stored_name()
    assert plan["model.layers.0.mlp.gate.weight"].spec.n_bits == 6
    assert {*plan} == {n for n in tensors() if n.endswith((".gate.weight", "embed_tokens.weight"))}


def test_nothing_to_palettize_and_bad_weights_are_errors(tmp_path: Path) -> None:
    found = write_folder(tmp_path / "src", shards=1)
    nothing = KMeansPalettizerConfig(global_config=None)
    with pytest.raises(PlanError, match="nothing is palettized"):
        palettize_checkpoint(tmp_path / "src", nothing, tmp_path / "out")
    found["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(found, tmp_path / "src" / "model.safetensors")
    with pytest.raises(WeightError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "out")


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path / "src")
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "one")
    palettize_checkpoint(tmp_path / "src", CONFIG, tmp_path / "two", num_workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
