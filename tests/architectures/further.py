"""Further models of transformers that were tried without being planned for, small and random."""

from __future__ import annotations

import torch
from language import DEEPSEEK, ENCODER, EXPERTS, MORE_EXPERTS, NO_CACHE, decoder
from record import normal
from seeing import (
    IMAGE,
    LARGE,
    PROJECTED,
    SMALL,
    SOUND,
    VIT,
    WAVES,
    WORDS,
    classifier,
    other,
)

_MAMBA = {"mamba_d_state": 8}
_LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_PYRAMID = {
    "image_size": 32,
    "hidden_sizes": [16, 32],
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "strides": [4, 2],
}

FURTHER = [
    decoder(
        "Qwen3Next",
        **MORE_EXPERTS,
        **_LINEAR,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    decoder("Dots1", **{key: DEEPSEEK[key] for key in DEEPSEEK if key not in _LATENT}),
    decoder("MiniMax", **EXPERTS, **_LINEAR, block_size=4),
    decoder(
        "Zamba2",
        **_MAMBA,
        num_hidden_layers=2,
        n_mamba_heads=8,
        mamba_headdim=8,
        mamba_ngroups=1,
        hybrid_layer_ids=[1],
        layers_block_type=["mamba", "hybrid"],
        num_mem_blocks=1,
        chunk_size=8,
        use_mem_eff_path=False,
    ),
    decoder(
        "Bamba",
        **_MAMBA,
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
        mamba_expand=2,
    ),
    decoder(
        "Jamba",
        **_MAMBA,
        num_experts=2,
        num_experts_per_tok=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    other(
        "Moonshine",
        "ForConditionalGeneration",
        {
            "input_values": normal(1, 2000),
            "decoder_input_ids": torch.arange(3, 8)[None],
            **NO_CACHE,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "vocab_size": 96,
            "max_position_embeddings": 64,
            "pad_head_dim_to_multiple_of": None,
        },
    ),
    classifier("Pvt", IMAGE, **_PYRAMID, sequence_reduction_ratios=[2, 1], patch_sizes=[4, 2]),
    classifier("PvtV2", IMAGE, **_PYRAMID, sr_ratios=[2, 1], patch_sizes=[7, 3]),
    classifier(
        "SwiftFormer", LARGE, image_size=64, depths=[1, 1, 1, 1], embed_dims=[8, 16, 16, 24]
    ),
    classifier("Bit", IMAGE, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_groups=8),
    other(
        "VitDet",
        "Model",
        IMAGE,
        {**VIT, "image_size": 32, "window_size": 2, "window_block_indices": [0]},
    ),
    other(
        "ViTMAE",
        "ForPreTraining",
        {**SMALL, "noise": torch.linspace(0, 1, 4)[None]},
        {
            **VIT,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
        },
    ),
    other(
        "Swin2SR",
        "ForImageSuperResolution",
        IMAGE,
        {"image_size": 32, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4},
    ),
    other(
        "CLIPSeg",
        "ForImageSegmentation",
        {**WORDS, **SMALL},
        {
            **PROJECTED,
            "projection_dim": 16,
            "extract_layers": [0, 1],
            "reduce_dim": 16,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
        },
    ),
    other(
        "GroupViT",
        "Model",
        {**WORDS, **SMALL},
        {
            "text_config": {**ENCODER, "bos_token_id": 1, "eos_token_id": 2},
            "vision_config": {
                **VIT,
                "depths": [1, 1],
                "num_group_tokens": [4, 0],
                "num_output_groups": [2, 2],
            },
            "projection_dim": 16,
            "projection_intermediate_dim": 32,
        },
    ),
    other("Git", "ForCausalLM", {**WORDS, **SMALL, **NO_CACHE}, {**ENCODER, "vision_config": VIT}),
    other(
        "VisualBert",
        "Model",
        {**WORDS, "visual_embeds": normal(1, 3, 16)},
        {**ENCODER, "visual_embedding_dim": 16},
    ),
    other(
        "SEWD",
        "ForCTC",
        SOUND,
        {**WAVES, "squeeze_factor": 2, "position_buckets": 16, "max_position_embeddings": 64},
    ),
    other(
        "Wav2Vec2Bert",
        "ForCTC",
        {"input_features": normal(1, 20, 16)},
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "feature_projection_input_dim": 16,
            "vocab_size": 32,
        },
    ),
]
