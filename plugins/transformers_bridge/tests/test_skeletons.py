"""Models without weights, calibrated block by block from shards: as in memory, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bridge_models import FURTHER, MODELS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import transformers_bridge
from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    Skeleton,
    palettize_checkpoint,
    read_checkpoint,
)
from palette_core.errors import CheckpointError
from transformers_bridge import experts

SPEC = {
    "n_bits": 3,
    "algorithm": "gptq",
    "granularity": {"type": "per_grouped_channel", "axis": 0, "group_size": 8},
}
# A tied head is an embedding in the checkpoint, and both in memory.
CONFIG = KMeansPalettizerConfig.from_dict(
    {
        "kmeans_palettization_config": {
            "global_config": {"op_state_spec": {"weight": SPEC}},
            "module_name_configs": {".*(embed_tokens|lm_head|mlp.gate)": None},
        }
    }
)


def batches() -> list[dict[str, Any]]:
    made = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 90, (2, 12), generator=made) for _ in range(3)]
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, :4] = 0
    return [
        {"input_ids": ids[0]},
        {"input_ids": ids[1]},
        {"input_ids": ids[2], "attention_mask": mask},
    ]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3"])
def test_blocks_from_shards_become_what_sequential_mode_makes_of_them(
    name: str, tmp_path: Path
) -> None:
    model = (MODELS | FURTHER)[name]()
    model.to(torch.bfloat16 if name == "qwen3" else torch.float32)
    model.save_pretrained(tmp_path / "src", max_shard_size="20KB")
    palettize_checkpoint(
        tmp_path / "src",
        CONFIG,
        tmp_path / "out",
        calibration=batches(),
        skeleton=transformers_bridge.skeleton(tmp_path / "src"),
    )
    found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=transformers_bridge.PaletteConfig(dequantize=True)
    )
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "src")
    dense.config.use_cache = False
    palettizer = KMeansPalettizer(dense, CONFIG)
    palettizer.calibrate(batches(), sequential=True)
    palettizer.prepare(batches()[0], show_progress=False)
    assert palettizer.report is not None
    assert {row.algorithm for row in palettizer.report.tensors} == {"gptq"}
    for row in palettizer.report.tensors:
        module, _, state = row.name.rpartition(".")
        expected = getattr(dense.get_submodule(module), state)
        assert torch.equal(found.get_parameter(row.name), expected), row.name


def with_weights(made: Skeleton, folder: Path) -> Any:
    """Return the model of a skeleton with the weights of a folder in memory."""
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            module, _, state = (made.names.get(name) or name).rpartition(".")
            weight = torch.nn.Parameter(tensor)
            made.model.get_submodule(module)._parameters[state] = weight
    return made.model


@pytest.mark.parametrize("name", ["qwen3_moe", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_experts_one_by_one_become_what_sequential_mode_makes_of_them(
    name: str, tmp_path: Path
) -> None:
    (MODELS | FURTHER)[name]().save_pretrained(tmp_path / "src")
    made = transformers_bridge.skeleton(tmp_path / "src")
    palettize_checkpoint(
        tmp_path / "src", CONFIG, tmp_path / "out", calibration=batches(), skeleton=made
    )
    found = read_checkpoint(tmp_path / "out").palettized
    one_by_one = with_weights(made, tmp_path / "src")
    stacked = AutoModelForCausalLM.from_pretrained(tmp_path / "src")
    for batch in batches():
        expected = stacked(**batch).logits
        torch.testing.assert_close(one_by_one(**batch).logits, expected, rtol=1e-5, atol=1e-6)
    palettizer = KMeansPalettizer(one_by_one, CONFIG)
    palettizer.calibrate(batches(), sequential=True)
    palettizer.prepare(batches()[0], show_progress=False)
    assert palettizer.report is not None
    assert {row.algorithm for row in palettizer.report.tensors} == {"gptq"}
    on_disk = {new: old for old, new in made.names.items()}
    rows = palettizer.report.tensors
    assert len(rows) == len(found) == 32
    for row in rows:
        module, _, state = row.name.rpartition(".")
        expected = getattr(one_by_one.get_submodule(module), state)
        decoded = found[on_disk[row.name]].decode()
        torch.testing.assert_close(decoded, expected, rtol=1e-5, atol=1e-6, msg=row.name)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = one_by_one(**batches()[2]).logits
    torch.testing.assert_close(opened(**batches()[2]).logits, expected, rtol=1e-5, atol=1e-6)


def test_experts_of_an_unknown_kind_are_refused(tmp_path: Path, monkeypatch) -> None:
    MODELS["qwen3_moe"]().save_pretrained(tmp_path / "src")
    monkeypatch.setattr(experts, "_ODD", ("has_gate",))
    with pytest.raises(CheckpointError, match=r"no tensor for .*experts\.gate_up_proj"):
        palettize_checkpoint(
            tmp_path / "src",
            CONFIG,
            tmp_path / "out",
            calibration=batches(),
            skeleton=transformers_bridge.skeleton(tmp_path / "src"),
        )


@pytest.mark.parametrize("architectures", [None, ["NoModelOfAnybody"]])
def test_a_model_that_transformers_does_not_have_is_refused(
    tmp_path: Path, architectures: list[str] | None
) -> None:
    MODELS["llama"]().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": architectures}))
    with pytest.raises(CheckpointError, match=r"config\.json has architectures .*; expected"):
        transformers_bridge.skeleton(tmp_path)
