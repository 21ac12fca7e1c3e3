"""Rules that say what a tensor is by its name: names as libraries of models write them."""

from __future__ import annotations

import pytest

from palette_core.operations import installed_operations
from palette_core.streaming.recognition import recognitions, recognize

CASES = {  # name, axes, model type: operation and axis, or the rule that leaves it
    ("model.layers.0.self_attn.q_proj.weight", 2, "llama"): ("linear", None),
    ("model.layers.0.mlp.gate_proj.weight", 2, "llama"): ("linear", None),
    ("model.layers.0.mlp.experts.7.down_proj.weight", 2, "qwen3_moe"): ("linear", None),
    ("model.layers.0.block_sparse_moe.experts.0.w1.weight", 2, "mixtral"): ("linear", None),
    ("model.layers.0.mlp.experts.gate_up_proj", 3, "gpt_oss"): ("linear", 2),
    ("model.layers.0.feed_forward.experts.down_proj", 3, "llama4_text"): ("linear", 2),
    ("model.layers.0.mlp.experts.gate_up_proj", 3, "qwen3_5_moe"): ("linear", 1),
    ("transformer.blocks.0.ffn.experts.mlp.w1", 2, "dbrx"): ("linear", 0),
    ("transformer.blocks.0.ffn.experts.mlp.w2", 2, "dbrx"): ("linear", 1),
    ("transformer.h.0.attn.c_attn.weight", 2, "gpt2"): ("linear", 1),
    ("h.0.mlp.c_fc.weight", 2, "gpt2"): ("linear", 1),
    ("transformer.h.0.attn.c_attn.weight", 2, "gpt_bigcode"): ("linear", None),
    ("lm_head.weight", 2, "llama"): ("linear", None),
    ("embed_out.weight", 2, "gpt_neox"): ("linear", None),
    ("encoder.embedding_hidden_mapping_in.weight", 2, "albert"): ("linear", None),
    ("bert.pooler.dense.weight", 2, "bert"): ("linear", None),
    ("visual.attn.in_proj_weight", 2, ""): ("multi_head_attention_forward", None),
    ("model.embed_tokens.weight", 2, "llama"): ("embedding", None),
    ("bert.embeddings.word_embeddings.weight", 2, "bert"): ("embedding", None),
    ("shared.weight", 2, "t5"): ("embedding", None),
    ("transformer.wte.weight", 2, "gpt2"): ("embedding", None),
    ("tokens_embed.weight", 2, "openai-gpt"): ("embedding", None),
    ("vision_model.embeddings.patch_embedding.weight", 4, "clip"): ("conv2d", None),
    ("patch_embed.proj.weight", 4, ""): ("conv2d", None),
    ("model.encoder.conv1.weight", 3, "whisper"): ("conv1d", None),
    ("backbone.layers.0.mixer.conv1d.weight", 3, "mamba2"): ("conv1d", None),
    ("model.layers.0.mlp.gate.weight", 2, "qwen3_moe"): "routers",
    ("model.layers.0.block_sparse_moe.gate.weight", 2, "mixtral"): "routers",
    ("model.layers.0.mlp.shared_expert_gate.weight", 2, "qwen2_moe"): "routers",
    ("model.layers.0.mlp.router.weight", 2, "gpt_oss"): "routers",
    ("transformer.blocks.0.ffn.router.layer.weight", 2, "dbrx"): "routers",
    ("model.layers.0.mlp.experts.gate_up_proj_bias", 2, "gpt_oss"): "biases",
    ("bert.embeddings.position_embeddings.weight", 2, "bert"): "positions and types",
    ("bert.embeddings.token_type_embeddings.weight", 2, "bert"): "positions and types",
    ("model.decoder.embed_positions.weight", 2, "opt"): "positions and types",
    ("transformer.wpe.weight", 2, "gpt2"): "positions and types",
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 2, "t5"): (
        "positions and types"
    ),
    ("vit.embeddings.position_embeddings", 3, "vit"): "positions and types",
    ("model.norm.weight", 1, "llama"): "few axes",
    ("blocks.0.norm1.weight", 2, ""): "norms",
    ("encoder.pos_conv_embed.conv.weight_v", 3, "wav2vec2"): "weight norm",
    ("backbone.layers.0.mixer.A_log", 2, "mamba"): "all others",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[2]}:{case[0]}")
def test_names_of_libraries_are_recognized(case: tuple[str, int, str]) -> None:
    name, axes, model_type = case
    found = recognize(name, (8,) * axes, {model_type})
    expected = CASES[case]
    if isinstance(expected, str):
        assert (found.name, found.operation) == (expected, None)
    else:
        assert (found.operation, found.axis) == expected


def test_operations_of_rules_are_those_of_the_table() -> None:
    named = {rule.operation for rule in recognitions()} - {None}
    assert named <= {*installed_operations().names()}
