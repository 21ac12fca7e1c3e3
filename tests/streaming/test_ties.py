"""Tied weights that a checkpoint holds twice stay equal, or nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from palette_core import (
    KMeansPalettizerConfig,
    palettize_checkpoint,
    plan_checkpoint,
    read_checkpoint,
)
from palette_core.errors import PlanError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BOTH = {"op_type_config": {"embedding": {"op_state_spec": {"weight": {"n_bits": 4}}}}}
VECTORS = {
    "op_state_spec": {"weight": {"n_bits": 2, "cluster_dim": 2}},
    "enable_fast_kmeans_mode": False,
}


def config(**more: object) -> KMeansPalettizerConfig:
    spec = {"op_state_spec": {"weight": {"n_bits": 4}}}
    return KMeansPalettizerConfig.model_validate({"global_config": spec} | more)


def source(folder: Path, *, equal: bool = True, **told: object) -> Path:
    torch.manual_seed(0)
    shared = torch.randn(64, 16)
    tensors = {
        EMBEDDING: shared,
        HEAD: shared.clone() if equal else torch.randn(64, 16),
        "model.layers.0.mlp.up_proj.weight": torch.randn(64, 16),
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **told}))
    return folder


@pytest.mark.parametrize("told", [{}, {"tie_word_embeddings": True}])
def test_palettizing_one_of_both_is_refused(tmp_path: Path, told: dict[str, object]) -> None:
    src = source(tmp_path / "src", **told)
    message = r"embed_tokens\.weight stays dense and lm_head\.weight gets 4 bits"
    with pytest.raises(PlanError, match=message):
        plan_checkpoint(src, config())
    with pytest.raises(PlanError, match="hold the same values"):
        palettize_checkpoint(src, config(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_both_get_one_palette_whatever_chance_there_is_in_it(tmp_path: Path) -> None:
    spec = VECTORS["op_state_spec"]
    vectors = {**VECTORS, "op_type_config": {"embedding": {"op_state_spec": spec}}}
    asked = KMeansPalettizerConfig.model_validate({"global_config": vectors})
    palettize_checkpoint(source(tmp_path / "src"), asked, tmp_path / "out")
    found = read_checkpoint(tmp_path / "out").palettized
    assert torch.equal(found[HEAD].decode(), found[EMBEDDING].decode())
    seeds = {item.name: item.seed for item in plan_checkpoint(tmp_path / "src", asked).plan}
    assert seeds["lm_head.weight"] == seeds["model.embed_tokens.weight"]


def test_other_specs_for_one_of_both_are_refused(tmp_path: Path) -> None:
    spec = {"op_state_spec": {"weight": {"n_bits": 4}}}
    asked = config(
        global_config=spec | BOTH,
        module_name_configs={"lm_head": {"op_state_spec": {"weight": {"n_bits": 8}}}},
    )
    with pytest.raises(PlanError, match=r"gets 4 bits and lm_head\.weight gets 8 bits"):
        plan_checkpoint(source(tmp_path / "src"), asked)


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ({"equal": False}, {}),
        ({"tie_word_embeddings": False}, {}),
        ({"text_config": {"tie_word_embeddings": False}}, {}),
        ({}, {"module_name_configs": {"lm_head": None}}),
    ],
    ids=["other values", "untied", "untied in a part", "both dense"],
)
def test_weights_that_are_not_tied_or_stay_dense_are_left_to_the_config(
    tmp_path: Path, values, asked
) -> None:
    planned = plan_checkpoint(source(tmp_path / "src", **values), config(**asked))
    assert ("lm_head.weight" in {item.name for item in planned.plan}) == (not asked)
