"""Models without weights, calibrated block by block from shards: as in memory, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bridge_models import FURTHER, MODELS
from transformers import AutoModelForCausalLM

import transformers_bridge
from palette_core import KMeansPalettizer, KMeansPalettizerConfig, palettize_checkpoint
from palette_core.errors import CheckpointError

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
            "module_name_configs": {".*(embed_tokens|lm_head)": None},
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


def test_experts_that_are_stored_one_by_one_are_refused(tmp_path: Path) -> None:
    MODELS["qwen3_moe"]().save_pretrained(tmp_path / "src")
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
