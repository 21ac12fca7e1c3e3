"""Models of pictures, sound and both, of transformers and diffusers, small and random."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from language import ENCODER, NO_CACHE, PAIR, TEXT, transformers_model
from record import Architecture, normal
from torch import nn

VIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
SMALL = {"pixel_values": normal(1, 3, 16, 16)}
IMAGE = {"pixel_values": normal(1, 3, 32, 32)}
LARGE = {"pixel_values": normal(1, 3, 64, 64)}
SOUND = {"input_values": normal(1, 800)}
WORDS = {"input_ids": torch.tensor([[1, 5, 6, 7, 2]])}
START = {"decoder_input_ids": torch.arange(3, 8)[None]}
STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1]}
WAVES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 32,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
PROJECTED = {"text_config": {**ENCODER, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 16}}
PROJECTED["vision_config"] = {**VIT, "projection_dim": 16}


def classifier(kind: str, inputs: dict[str, Any], **settings: Any) -> Architecture:
    make = partial(transformers_model, f"{kind}ForImageClassification", f"{kind}Config", settings)
    return Architecture(kind, make, inputs)


def other(
    kind: str, head: str, inputs: dict[str, Any], settings: dict[str, Any], name: str = ""
) -> Architecture:
    make = partial(transformers_model, f"{kind}{head}", f"{kind}Config", settings)
    return Architecture(name or kind, make, inputs)


def _detector(kind: str, **more: Any) -> Architecture:
    def build() -> nn.Module:
        import transformers

        backbone = transformers.ResNetConfig(
            embedding_size=16, **STAGES, out_features=["stage1", "stage2"][-len(more) - 1 :]
        )
        settings = {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone_config": backbone,
            "num_queries": 5,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            **more,
        }
        return transformers_model(f"{kind}ForObjectDetection", f"{kind}Config", settings)

    return Architecture(kind, build, IMAGE)


def diffusers_model(name: str, kind: str, inputs: dict[str, Any], **settings: Any) -> Architecture:
    def build() -> nn.Module:
        import diffusers

        made: nn.Module = getattr(diffusers, kind)(**settings)
        return made

    return Architecture(f"diffusers {name}", build, inputs)


def _wave(kind: str, **more: Any) -> Architecture:
    return other(kind, "ForCTC", SOUND, {**WAVES, **more})


STEP = {"timestep": torch.tensor([3])}
LATENT, PROMPT = normal(1, 4, 8, 8), normal(1, 5, 16)
BLOCKS = {"block_out_channels": (16, 32), "norm_num_groups": 8}
SEEING = [
    classifier("ViT", SMALL, **VIT),
    classifier(
        "Swin",
        IMAGE,
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=4,
    ),
    classifier("ConvNextV2", IMAGE, **STAGES, num_stages=2),
    classifier("MobileNetV2", IMAGE, depth_multiplier=0.25, image_size=32),
    _detector("Detr"),
    other(
        "CLIP",
        "Model",
        {
            "input_ids": torch.tensor([[1, 5, 6, 7, 2], [1, 5, 2, 0, 0]]),
            "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]),
            **SMALL,
        },
        {**PROJECTED, "projection_dim": 16},
    ),
    other(
        "Llava",
        "ForConditionalGeneration",
        {"input_ids": torch.tensor([[90, 90, 90, 90, 5, 6]]), **SMALL, **NO_CACHE},
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **VIT, "projection_dim": 16},
            "image_token_index": 90,
            "vision_feature_layer": -1,
        },
    ),
    _wave("Wav2Vec2"),
    diffusers_model(
        "UNet2DConditionModel",
        "UNet2DConditionModel",
        {"sample": LATENT, **STEP, "encoder_hidden_states": PROMPT},
        sample_size=8,
        layers_per_block=1,
        **BLOCKS,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    diffusers_model(
        "AutoencoderKL",
        "AutoencoderKL",
        {"sample": normal(1, 3, 16, 16)},
        **BLOCKS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
]

MORE_SEEING = [
    *(
        classifier(kind, SMALL, **VIT)
        for kind in ("DeiT", "Dinov2", "Dinov2WithRegisters", "ViTMSN", "IJepa")
    ),
    *(
        classifier(kind, SMALL, **VIT, use_relative_position_bias=True)
        for kind in ("Beit", "Data2VecVision")
    ),
    classifier("ConvNext", IMAGE, **STAGES, num_stages=2),
    classifier("ResNet", IMAGE, embedding_size=16, **STAGES),
    classifier("RegNet", IMAGE, embedding_size=16, **STAGES, groups_width=8),
    classifier("MobileNetV1", IMAGE, depth_multiplier=0.25, image_size=32),
    classifier(
        "FocalNet",
        IMAGE,
        image_size=32,
        embed_dim=16,
        **STAGES,
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    classifier(
        "MobileViT",
        LARGE,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32],
        patch_size=2,
    ),
    classifier("MobileViTV2", LARGE, image_size=64, width_multiplier=0.25),
    classifier(
        "EfficientNet",
        IMAGE,
        image_size=32,
        width_coefficient=0.25,
        depth_coefficient=0.25,
        hidden_dim=320,
        num_block_repeats=[1] * 7,
    ),
    classifier(
        "Swinv2",
        IMAGE,
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=4,
    ),
    classifier(
        "Levit",
        LARGE,
        image_size=64,
        hidden_sizes=[16, 32, 32],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    classifier(
        "PoolFormer",
        IMAGE,
        **STAGES,
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
        num_encoder_blocks=2,
    ),
    classifier(
        "Hiera",
        IMAGE,
        image_size=[32, 32],
        embed_dim=16,
        depths=[1, 1],
        num_heads=[1, 2],
        patch_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        query_stride=[2, 2],
        masked_unit_size=[4, 4],
        num_query_pool=1,
        masked_unit_attention=[True, False],
    ),
    other(
        "Segformer",
        "ForSemanticSegmentation",
        IMAGE,
        {
            **STAGES,
            "num_encoder_blocks": 2,
            "sr_ratios": [2, 1],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 32,
        },
    ),
    _detector("ConditionalDetr"),
    _detector("DeformableDetr", num_feature_levels=2),
    other(
        "Yolos",
        "ForObjectDetection",
        SMALL,
        {**VIT, "image_size": [16, 16], "num_detection_tokens": 5},
    ),
    other(
        "DPT",
        "ForDepthEstimation",
        SMALL,
        {
            **VIT,
            "num_hidden_layers": 4,
            "is_hybrid": False,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "reassemble_factors": [4, 2, 1, 0.5],
        },
    ),
    other(
        "Siglip",
        "Model",
        {**WORDS, **SMALL},
        {"text_config": {**ENCODER, "projection_size": 32}, "vision_config": VIT},
    ),
    other(
        "Blip",
        "ForConditionalGeneration",
        {**WORDS, **SMALL},
        {
            "text_config": {
                **ENCODER,
                "encoder_hidden_size": 32,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "sep_token_id": 2,
                "projection_dim": 16,
            },
            "vision_config": {**VIT, "projection_dim": 16},
            "projection_dim": 16,
        },
    ),
    other(
        "Gemma3",
        "ForConditionalGeneration",
        {
            "input_ids": torch.tensor([[90, 90, 90, 90, 5, 6]]),
            "token_type_ids": torch.tensor([[1, 1, 1, 1, 0, 0]]),
            **SMALL,
            **NO_CACHE,
        },
        {
            "text_config": {**TEXT, "sliding_window": 4},
            "vision_config": {**VIT, "vision_use_head": False},  # as trained ones have it
            "mm_tokens_per_image": 4,
            "image_token_index": 90,
        },
        name="Gemma3, images",
    ),
    other(
        "Vilt", "ForMaskedLM", {**WORDS, **SMALL}, {**ENCODER, "image_size": 16, "patch_size": 8}
    ),
    other(
        "Whisper",
        "ForConditionalGeneration",
        {"input_features": normal(1, 8, 32), **START, **NO_CACHE},
        {
            **{k: v for k, v in PAIR.items() if k != "max_position_embeddings"},
            "max_source_positions": 16,
            "max_target_positions": 32,
            "num_mel_bins": 8,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    *(_wave(kind) for kind in ("Hubert", "WavLM", "UniSpeech", "SEW", "Data2VecAudio")),
    _wave("Wav2Vec2Conformer", position_embeddings_type="relative"),
    other(
        "SpeechT5",
        "ForSpeechToText",
        {**SOUND, **START, **NO_CACHE},
        {
            **{name: WAVES[name] for name in WAVES if "conv" in name or name == "hidden_size"},
            "num_feat_extract_layers": 2,
            "vocab_size": 96,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_layers": 2,
            "decoder_ffn_dim": 64,
            "decoder_attention_heads": 4,
            "max_speech_positions": 400,
            "max_text_positions": 64,
        },
    ),
    other(
        "AST",
        "ForAudioClassification",
        {"input_values": normal(1, 32, 16)},
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": 8,
            "frequency_stride": 8,
            "time_stride": 8,
            "max_length": 32,
            "num_mel_bins": 16,
        },
    ),
    other(
        "PatchTST",
        "ForPrediction",
        {"past_values": normal(1, 16, 2)},
        {
            "num_input_channels": 2,
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "num_hidden_layers": 2,
            "d_model": 16,
            "num_attention_heads": 4,
            "ffn_dim": 32,
            "prediction_length": 4,
        },
    ),
    diffusers_model(
        "AutoencoderTiny",
        "AutoencoderTiny",
        {"sample": normal(1, 3, 16, 16)},
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    diffusers_model(
        "DiTTransformer2DModel",
        "DiTTransformer2DModel",
        {"hidden_states": LATENT, **STEP, "class_labels": torch.tensor([1])},
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=100,
        norm_num_groups=4,
    ),
    diffusers_model(
        "SD3Transformer2DModel",
        "SD3Transformer2DModel",
        {
            "hidden_states": LATENT,
            "encoder_hidden_states": PROMPT,
            "pooled_projections": normal(1, 16),
            **STEP,
        },
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
    ),
    diffusers_model(
        "PixArtTransformer2DModel",
        "PixArtTransformer2DModel",
        {"hidden_states": LATENT, "encoder_hidden_states": PROMPT, **STEP},
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        norm_num_groups=4,
        use_additional_conditions=False,
    ),
    diffusers_model(
        "FluxTransformer2DModel",
        "FluxTransformer2DModel",
        {
            "hidden_states": normal(1, 16, 4),
            "encoder_hidden_states": PROMPT,
            "pooled_projections": normal(1, 16),
            "timestep": torch.tensor([1.0]),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(5, 3),
        },
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    ),
]
